"""Every input that fuzzing found to be interesting is read again, without the fuzzer."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import CORPUS
from tests.fuzz.targets import TARGETS

MOST = 64 * 1024  # bytes of the inputs of one target: the tree stays small


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_nothing_but_our_own_errors_comes_of_the_corpus(target: str) -> None:
    inputs = sorted((CORPUS / target).iterdir())
    assert inputs
    for path in inputs:
        TARGETS[target](path.read_bytes())


@pytest.mark.parametrize("target", sorted(TARGETS))
@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 600, b"[" * 4000, b"{" * 4000, b"*" * 999])
def test_nothing_but_our_own_errors_comes_of_simple_nonsense(target: str, data: bytes) -> None:
    TARGETS[target](data)


def test_every_target_has_a_small_corpus_and_every_corpus_a_target() -> None:
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)
    for target in TARGETS:
        assert sum(path.stat().st_size for path in (CORPUS / target).iterdir()) < MOST, target
