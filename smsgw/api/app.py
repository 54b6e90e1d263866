"""All routes, in one list: the public application, and the admin application around it."""

from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from smsgw.api.accounts import AccountRoutes
from smsgw.api.admin import AdminRoutes
from smsgw.api.backups import BackupRoutes
from smsgw.api.docs import docs_routes
from smsgw.api.edge import Edge
from smsgw.api.messages import MessageRoutes
from smsgw.api.providers import ProviderRoutes
from smsgw.api.quick import PATH, Handle
from smsgw.api.receipts import ReceiptRoutes
from smsgw.api.status import SandboxRoutes, StatusRoutes
from smsgw.archive import Archive
from smsgw.gateway import Gateway


class WordRoute(Route):
    """A path that would also fit a later route's pattern: for other methods, it says 405."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See ``Route.matches``; there is no partial match."""
        match, child_scope = super().matches(scope)
        return (Match.FULL if match is Match.PARTIAL else match), child_scope


def public_routes(gateway: Gateway) -> list[BaseRoute]:
    """What is reachable over TCP; nothing here creates clients or money."""
    archive = Archive(gateway.shards)
    messages = MessageRoutes(gateway, archive)
    accounts = AccountRoutes(gateway, archive)
    status = StatusRoutes(gateway)
    receipts = ReceiptRoutes(gateway)
    found: list[BaseRoute] = [
        # The hot route stands first, as a plain ASGI application.
        Route(PATH, messages, methods=["GET", "POST"]),
        WordRoute("/v1/messages/batch", messages.batch, methods=["POST"]),
        WordRoute("/v1/messages/preview", messages.preview, methods=["POST"]),
        Route("/v1/messages/{id}", messages.get, methods=["GET"]),
        Route("/v1/messages/{id}/cancel", messages.cancel, methods=["POST"]),
        Route("/v1/batches/{batch_id}/cancel", messages.cancel_batch, methods=["POST"]),
        Route("/v1/otp/verify", messages.verify, methods=["POST"]),
        Route("/v1/me", accounts.me, methods=["GET"]),
        Route("/v1/me/statement", accounts.statement, methods=["GET"]),
        Route("/v1/reports", accounts.report, methods=["GET"]),
        Route("/v1/providers/{name}/dlr", receipts.dlr, methods=["POST"]),
        Route("/v1/providers/{name}/dlr/{token}", receipts.dlr_of_token, methods=["GET", "POST"]),
        Route("/health", status.health, methods=["GET"]),
        Route("/ready", status.ready, methods=["GET"]),
        Route("/metrics", status.metrics, methods=["GET"]),
        *docs_routes(
            dev=gateway.dev, national_numbers=bool(gateway.settings.numbers.default_region)
        ),
    ]
    if gateway.dev:
        sandbox = SandboxRoutes(gateway)
        found.append(Route("/v1/sandbox/messages", sandbox.messages, methods=["GET", "DELETE"]))
    return found


class HotRoute:
    """The one route that every message takes, found without asking a router."""

    def __init__(self, routes: list[BaseRoute]) -> None:
        first = routes[0]
        assert isinstance(first, Route)
        self._route = first
        self._app = first.endpoint
        self._router = Router(routes, redirect_slashes=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Straight to the endpoint, or through the router."""
        if scope.get("method") == "POST" and scope["path"] == self._route.path:
            scope["route"] = self._route
            await self._app(scope, receive, send)
        else:
            await self._router(scope, receive, send)


def public_app(gateway: Gateway) -> ASGIApp:
    """The application for the network."""
    return Edge(HotRoute(public_routes(gateway)), gateway.metrics.http)


def short_way(gateway: Gateway) -> Handle:
    """What takes plain messages without going through an application."""
    return MessageRoutes(gateway, Archive(gateway.shards)).take


def admin_app(gateway: Gateway) -> ASGIApp:
    """The application for the Unix socket and the command line: everything."""
    admin = AdminRoutes(gateway, Archive(gateway.shards))
    routes = [
        *public_routes(gateway),
        *admin.routes(),
        *ProviderRoutes(gateway).routes(),
        *BackupRoutes(gateway).routes(),
    ]
    return Edge(HotRoute(routes), gateway.metrics.http)
