"""A token server for Debian's registry, after Docker's "Token Authentication Specification".

    with TokenServer(folder, "bot", "s3cret") as tokens, docker_registry(
        folder, more=tokens.registry_configuration()
    ) as server: ...

Whoever gives the password gets what he asks for; others may pull what is below `public/`.
"""

from __future__ import annotations

import base64
import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.x509 import load_pem_x509_certificate

from tests.authority import Authority

SERVICE = "Registry, of tests"
ISSUER = "tokens of tests"
IDENTITY = "an-identity-token"


class TokenServer:
    """Use with `with`.  `issued` holds the claims of every token, oldest first."""

    def __init__(self, folder: Path, username: str, password: str, *, life: int = 300) -> None:
        self._pair = Authority(folder, "tokens").pair
        key = serialization.load_pem_private_key(self._pair.key.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        self._key = key
        self._login = base64.b64encode(f"{username}:{password}".encode()).decode()
        self._life = life  # seconds
        self.issued: list[dict[str, Any]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/token"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def registry_configuration(self) -> str:
        """Return what a registry has to be told to believe these tokens."""
        return (
            f"auth: {{token: {{realm: '{self.url}', service: '{SERVICE}', issuer: '{ISSUER}',"
            f" rootcertbundle: '{self._pair.certificate}'}}}}\n"
        )

    def answer(self, query: dict[str, list[str]], form: dict[str, list[str]], login: str) -> Any:  # noqa: ANN401
        """Return what is said to a request, None if it is refused."""
        is_refresh = form.get("grant_type") == ["refresh_token"]
        if is_refresh and form.get("refresh_token") != [IDENTITY]:
            return None
        if login and login != f"Basic {self._login}":
            return None
        known = is_refresh or bool(login)
        scopes = form.get("scope") or query.get("scope") or []
        access = [one for scope in scopes if (one := self._grant(scope, known=known))]
        token = self._make_token(access)
        name = "access_token" if is_refresh else "token"
        return {name: token, "expires_in": self._life}

    def _grant(self, scope: str, *, known: bool) -> dict[str, Any] | None:
        kind, name, actions = scope.split(":")
        if known:
            return {"type": kind, "name": name, "actions": actions.split(",")}
        return {"type": kind, "name": name, "actions": ["pull"]} if name[:7] == "public/" else None

    def _make_token(self, access: list[dict[str, Any]]) -> str:
        now = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": "",
            "aud": SERVICE,
            "iat": now,
            "nbf": now - 10,
            "exp": now + self._life,
            "jti": secrets.token_hex(8),
            "access": access,
        }
        self.issued.append(claims)
        certificate = load_pem_x509_certificate(self._pair.certificate.read_bytes())
        der = certificate.public_bytes(serialization.Encoding.DER)
        header = {"typ": "JWT", "alg": "ES256", "x5c": [base64.b64encode(der).decode()]}
        text = f"{_encode(json.dumps(header).encode())}.{_encode(json.dumps(claims).encode())}"
        r, s = decode_dss_signature(self._key.sign(text.encode(), ec.ECDSA(hashes.SHA256())))
        return f"{text}.{_encode(r.to_bytes(32, 'big') + s.to_bytes(32, 'big'))}"


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _handler(server: TokenServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            """What was issued is recorded."""

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            query = parse_qs(urlsplit(self.path).query)
            login = self.headers.get("Authorization", "")
            answer = server.answer(query, parse_qs(body), login)
            data = json.dumps(answer or {"details": "incorrect username or password"}).encode()
            self.send_response(200 if answer else 401)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET  # noqa: N815

    return Handler
