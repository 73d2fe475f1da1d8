"""The pages for people: read from the same sources as the API, rendered here."""

from __future__ import annotations

from datetime import datetime
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from cvmfs_publish import __version__
from cvmfs_publish.errors import PublishError, RepositoryError
from cvmfs_publish.state.model import Image, Search
from cvmfs_publish.state.reading import Reader
from cvmfs_publish.web.answers import HttpError, absent, as_json, conditional
from cvmfs_publish.web.api import ENDPOINTS, choice_of
from cvmfs_publish.web.bodies import read_form
from cvmfs_publish.web.catalogue import CONDITIONS, ORDERS, Item
from cvmfs_publish.web.commands import SiteCommands, plan_commands
from cvmfs_publish.web.feeds import format_atom, format_json_feed
from cvmfs_publish.web.library import Details, Shelf
from cvmfs_publish.web.ordering import Order, parse_key, place_order
from cvmfs_publish.web.pages import DEFAULT_PLATFORM, image_path
from cvmfs_publish.web.parameters import (
    PLATFORM_PATTERN,
    NumberParameter,
    Parameter,
    read_query,
)
from cvmfs_publish.web.rows import (
    LIVE,
    SHOWN_FAILURES,
    Action,
    Facts,
    count_failed,
    describe_row,
    draw_charts,
    find_others,
    list_failed,
    list_running,
    list_versions,
    list_wishlists,
    plan_choices,
    plan_links,
    plan_tiles,
)
from cvmfs_publish.web.service import Service
from cvmfs_publish.web.views import (
    MEANINGS,
    Frame,
    ago,
    plan_bars,
    plan_lags,
    plan_lines,
    plan_steps,
)
from cvmfs_publish.words import format_minute

HTML = "text/html; charset=utf-8"
PER_PAGE = 50
LINES_PER_PAGE = 200
EVENTS_PER_PAGE = 100
SHOWN_EVENTS = 10  # on other pages
SHOWN_JOBS = 6
FEED = "/feeds/events.atom"
ORDER_TITLES = {
    "name": "by name",
    "changed": "last changed first",
    "requested": "last requested first",
    "size": "largest first",
}

_PAGE = NumberParameter("page", "which page, from 1", 1, 1_000_000, 1)
_PLATFORM = Parameter(
    "platform", "platform", PLATFORM_PATTERN, max_length=100, default=DEFAULT_PLATFORM
)
_SEARCH = (
    Parameter("q", "words"),
    Parameter("status", "what became of it", choices=("", *CONDITIONS)),
    Parameter("registry", "host"),
    Parameter("platform", "platform"),
    Parameter("owner", "owner"),
    Parameter("sort", "order", choices=ORDERS, default="name"),
    _PAGE,
)


class Site:
    """The handlers.  Those that only read are plain functions: starlette runs them in threads."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._html = service.html

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.show_overview),
            Route("/images", self.show_images),
            Route("/images/{name:path}", self.show_image),
            Route("/live/images/{name:path}", self.show_progress),
            Route("/wishlists", self.show_wishlists),
            Route("/wishlists/lines", self.show_wishlist),
            Route("/events", self.show_events),
            Route(FEED, self.show_atom),
            Route("/feeds/events.json", self.show_json_feed),
            Route("/api", self.show_api),
            Route("/assets/{tag}/{name}", self.show_asset),
            Route("/login", self.show_login),
            Route("/login", self.log_in, methods=["POST"], name="logIn"),
            Route("/logout", self.log_out, methods=["POST"], name="logOut"),
            Route("/actions/publish", self.publish, methods=["POST"], name="publishForm"),
            Route("/actions/look", self.look, methods=["POST"], name="lookForm"),
        ]

    # pages

    def show_overview(self, request: Request) -> Response:
        read_query(request.url.query, ())
        service, now = self._service, self._service.clock()
        shelf, facts, fault = self._facts(now)
        reader = service.watch.reader()
        catalogue = service.catalogue() if shelf is not None else None
        budgets = reader.budgets() if reader is not None else ()
        watcher, watcher_state = self._watcher(reader, now)
        revision = shelf.manifest.revision if shelf is not None else 0
        return self._page(
            request,
            "overview.html",
            "Overview",
            "overview",
            facts=facts,
            fault=fault,
            tiles=plan_tiles(shelf, catalogue, facts, reader, now),
            now_running=list_running(reader),
            queue=[job for job in reader.queue(SHOWN_JOBS * 4) if not job.is_running][:SHOWN_JOBS]
            if reader is not None
            else [],
            queue_length=reader.queue_length() if reader is not None else 0,
            failures=list_failed(reader),
            failure_count=count_failed(reader),
            budgets=budgets,
            blocked={
                budget.registry: budget.blocked_until
                for budget in budgets
                if budget.blocked_until is not None and budget.blocked_until > now
            },
            lags=plan_lags(reader.replicas() if reader is not None else (), revision),
            lists=list_wishlists(reader),
            events=reader.latest_events(SHOWN_EVENTS) if reader is not None else (),
            watcher=watcher,
            watcher_state=watcher_state,
        )

    def show_images(self, request: Request) -> Response:
        values = read_query(request.url.query, _SEARCH)
        service = self._service
        shelf = service.library.shelf()
        catalogue = service.catalogue()
        found = catalogue.choose(choice_of(values))
        links = plan_links("Pages of images", request, values.number("page"), len(found), PER_PAGE)
        shown = found[(links.number - 1) * PER_PAGE : links.number * PER_PAGE]
        images = service.images_of(shown)
        return self._page(
            request,
            "images.html",
            "Images",
            "images",
            form={
                name: values.text(name)
                for name in ("q", "status", "registry", "platform", "owner", "sort")
            },
            choices=plan_choices(catalogue, values),
            rows=[describe_row(item, images.get(item.key)) for item in shown],
            total=len(found),
            everything=len(catalogue.items),
            links=links,
            damaged=shelf.damaged[:SHOWN_FAILURES],
            orders=ORDER_TITLES,
        )

    def show_image(self, request: Request) -> Response:
        platform = read_query(request.url.query, (_PLATFORM,)).text("platform")
        service = self._service
        shelf, item, image = service.find(parse_key(request.path_params["name"], platform))
        if item is None:
            raise absent(
                f"There is no image {request.path_params['name']} for {platform}.",
                "Search for a part of its name.",
            )
        details, fault = self._details(item)
        reader = service.watch.reader()
        charts, text = draw_charts(details)
        return self._page(
            request,
            "image.html",
            item.key.name,
            "images",
            name=item.key.name,
            platform=item.key.platform,
            condition=item.condition,
            meaning=MEANINGS[item.condition],
            others=find_others(shelf, reader, item.key),
            record=item.record,
            image=image,
            details=details,
            fault=fault,
            reused=sum(layer.uses > 1 for layer in details.layers) if details is not None else 0,
            charts=charts,
            chart_text=text,
            sites=self._commands(item),
            versions=list_versions(details),
            events=reader.latest_events(SHOWN_EVENTS, name=item.key.name)
            if reader is not None
            else (),
            actions=self._actions(request, image),
            **self._progress(item, image),
        )

    def show_progress(self, request: Request) -> Response:
        """Return the part of an image's page that changes while somebody looks."""
        platform = read_query(request.url.query, (_PLATFORM,)).text("platform")
        _, item, image = self._service.find(parse_key(request.path_params["name"], platform))
        if item is None:
            raise absent(f"There is no image {request.path_params['name']} for {platform}.")
        text = self._html.render("progress.html", **self._progress(item, image))
        return conditional(request, text, HTML)

    def show_wishlists(self, request: Request) -> Response:
        read_query(request.url.query, ())
        rows = list_wishlists(self._service.watch.reader())
        return self._page(request, "wishlists.html", "Wishlists", "wishlists", lists=rows)

    def show_wishlist(self, request: Request) -> Response:
        wanted = (Parameter("list", "name of the wishlist", max_length=2000), _PAGE)
        values = read_query(request.url.query, wanted)
        name = values.text("list")
        reader = self._service.watch.reader()
        lists = {each.name: each for each in reader.lists()} if reader is not None else {}
        if reader is None or name not in lists:
            raise absent(f"There is no wishlist {name}.")
        first = values.number("page") - 1
        search = Search(list=name, order="line", limit=LINES_PER_PAGE)
        found = reader.search(
            Search(list=name, order="line", limit=LINES_PER_PAGE, offset=first * LINES_PER_PAGE)
        )
        links = plan_links("Pages of lines", request, first + 1, found.total, LINES_PER_PAGE)
        if links.number != first + 1:
            found = reader.search(search)
        problems = reader.problems(name)
        begin = found.images[0].line if found.images and links.number > 1 else 0
        end = found.images[-1].line if links.number < links.last else 2**31
        items = self._service.catalogue().items
        return self._page(
            request,
            "wishlist.html",
            name,
            "wishlists",
            list=lists[name],
            lines=plan_lines(found.images, [p for p in problems if begin <= p.line <= end]),
            total=found.total,
            problem_count=len(problems),
            links=links,
            conditions={item.key: item.condition for item in items},
        )

    def show_events(self, request: Request) -> Response:
        wanted = (
            NumberParameter("before", "id", 0, 2**53, 0),
            Parameter("name", "image", max_length=600),
        )
        values = read_query(request.url.query, wanted)
        name, before = values.text("name"), values.number("before")
        reader = self._service.watch.reader()
        events = (
            reader.latest_events(EVENTS_PER_PAGE, before=before or None, name=name)
            if reader is not None
            else ()
        )
        older = {"before": events[-1].id} if len(events) == EVENTS_PER_PAGE else {}
        query = urlencode({**older, **({"name": name} if name else {})})
        return self._page(
            request,
            "events.html",
            "Events",
            "events",
            events=events,
            about=name,
            older=f"/events?{query}" if older else "",
            kinds={event.kind: event.kind.replace("-", " ") for event in events},
        )

    def show_api(self, request: Request) -> Response:
        read_query(request.url.query, ())
        return self._page(request, "api.html", "API", "api", routes=ENDPOINTS)

    # feeds and files

    def show_atom(self, request: Request) -> Response:
        read_query(request.url.query, ())
        reader, url = self._service.watch.reader(), self._url(request)
        events = reader.latest_events(EVENTS_PER_PAGE) if reader is not None else ()
        data = format_atom(events, self._service.library.name, url)
        return conditional(request, data, "application/atom+xml; charset=utf-8")

    def show_json_feed(self, request: Request) -> Response:
        read_query(request.url.query, ())
        reader, url = self._service.watch.reader(), self._url(request)
        events = reader.latest_events(EVENTS_PER_PAGE) if reader is not None else ()
        return as_json(request, format_json_feed(events, self._service.library.name, url))

    def show_asset(self, request: Request) -> Response:
        asset = self._html.assets.get(request.path_params["name"])
        if asset is None or asset.tag != request.path_params["tag"]:
            raise absent("There is no such file.")
        return Response(
            asset.content,
            headers={"Cache-Control": "public, max-age=31536000, immutable"},
            media_type=asset.media_type,
        )

    # logging in, and what is then possible

    def show_login(self, request: Request) -> Response:
        read_query(request.url.query, ())
        if not self._service.access.is_possible:
            raise absent("Nothing can be changed here, so there is nothing to log in for.")
        return self._login_page(request, "", HTTPStatus.OK)

    async def log_in(self, request: Request) -> Response:
        form = await read_form(request)
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        try:
            self._service.access.open_session(request, form.get("token", ""), answer)
        except HttpError as error:
            if not self._service.access.is_possible:
                raise
            return self._login_page(request, f"{error}.", error.status)
        return answer

    async def log_out(self, request: Request) -> Response:
        form = await read_form(request)
        self._service.access.check_form(request, form.get("form_token", ""))
        answer = RedirectResponse("/", HTTPStatus.SEE_OTHER)
        self._service.access.close_session(answer)
        return answer

    async def publish(self, request: Request) -> Response:
        return await self._act(request, "publish")

    async def look(self, request: Request) -> Response:
        return await self._act(request, "look")

    async def _act(self, request: Request, what: Order) -> Response:
        form = await read_form(request)
        self._service.access.check_form(request, form.get("form_token", ""))
        platform = _PLATFORM.read(form.get("platform", DEFAULT_PLATFORM))
        key = parse_key(form.get("name", ""), platform)
        await place_order(self._service, what, key)
        return RedirectResponse(image_path(key.name, key.platform), HTTPStatus.SEE_OTHER)

    def _login_page(self, request: Request, fault: str, status: int) -> Response:
        answer = self._page(request, "login.html", "Log in", "login", fault=fault)
        if answer.status_code == HTTPStatus.OK:
            answer.status_code = status
        return answer

    def _actions(self, request: Request, image: Image | None) -> list[Action]:
        service = self._service
        is_permitted = service.control is not None and service.access.session(request) is not None
        if not is_permitted or image is None or not image.is_wished:
            return []
        is_held = image.status in ("failed", "quarantined")
        title = "Release and try again" if is_held else "Publish now"
        actions = [Action("Look at the registry now", "/actions/look")]
        if image.status not in ("queued", "publishing"):
            actions.insert(0, Action(title, "/actions/publish"))
        return actions

    # parts

    def render_error(self, request: Request, error: HttpError) -> Response:
        title = HTTPStatus(error.status).phrase
        answer = self._page(
            request,
            "error.html",
            title,
            "",
            heading=title,
            status=error.status,
            message=str(error),
            hint=error.hint,
        )
        answer.status_code = error.status
        answer.headers["Cache-Control"] = "no-store"
        answer.headers.update(error.headers)
        return answer

    def _page(
        self, request: Request, template: str, title: str, active: str, **values: object
    ) -> Response:
        service = self._service
        try:
            revision = service.library.shelf().manifest.revision
        except RepositoryError:
            revision = None
        frame = Frame(
            title,
            active,
            service.library.name,
            revision,
            __version__,
            service.access.is_possible and service.control is not None,
            service.access.session(request),
            FEED,
        )
        text = self._html.render(template, frame=frame, **values)
        return conditional(request, text, HTML, varies="Cookie")

    def _url(self, request: Request) -> str:
        return (self._service.url or str(request.base_url)).rstrip("/")

    def _facts(self, now: datetime) -> tuple[Shelf | None, Facts | None, str]:
        try:
            shelf = self._service.library.shelf()
            info = self._service.library.info(now)
        except PublishError as error:
            return None, None, f"The repository cannot be read: {error}"
        counters = info.counters
        kinds = ("regular", "symlink", "special", "dir")
        return (
            shelf,
            Facts(
                shelf.published_at,
                str(shelf.manifest.root_hash),
                sum(counters[kind] for kind in kinds),
                counters["nested"] + 1,
                counters["file_size"],
                shelf.sandboxes,
                info.whitelist.ends_at,
                info.certificate_expires_at,
            ),
            "",
        )

    def _watcher(self, reader: Reader | None, now: datetime) -> tuple[str, str]:
        """Return what is known of the watcher, and how good that is."""
        alive = reader.moment("alive") if reader is not None else None
        if alive is None:
            is_bad = self._service.expects_watcher
            return "No watcher has run here yet.", "bad" if is_bad else ""
        if now - alive > self._service.alive_within:
            return f"The watcher does not work: it was last seen {ago(alive, now)}.", "bad"
        refused = reader.moment("refused") if reader is not None else None
        if refused is not None:
            return (
                f"Nothing can be published since {format_minute(refused)}; see the events.",
                "bad",
            )
        return "The watcher works.", "ok"

    def _details(self, item: Item) -> tuple[Details | None, str]:
        if item.record is None:
            return None, ""
        try:
            return self._service.library.details(item.record), ""
        except PublishError as error:
            return None, f"Its details cannot be read: {error}"

    def _commands(self, item: Item) -> list[SiteCommands]:
        service = self._service
        if item.record is None or service.site_pages is None:
            return []
        return plan_commands(item.record, service.library.name, service.sites, service.site_pages)

    def _progress(self, item: Item, image: Image | None) -> dict[str, object]:
        is_live = image is not None and image.is_wished and image.status in LIVE
        return {
            "source": "/live" + image_path(item.key.name, item.key.platform) if is_live else "",
            "steps": plan_steps(image, item.record, has_replicas=bool(self._service.replicas)),
            "bars": plan_bars(image.progress if image is not None else None),
            "failure": image.failure if image is not None else None,
            "next_attempt_at": image.next_attempt_at if image is not None else None,
        }
