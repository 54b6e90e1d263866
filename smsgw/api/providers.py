"""How operators are, switching them on and off, and testing them. On the Unix socket only."""

from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from smsgw.api.edge import read_body
from smsgw.api.parsing import parse, query
from smsgw.api.schemas import ProviderTest
from smsgw.api.wire import Json
from smsgw.clock import rfc3339
from smsgw.entrance import Wish
from smsgw.errors import InvalidRequest, NotReady
from smsgw.gateway import Gateway
from smsgw.links import Link
from smsgw.models import Verdict
from smsgw.operators import ProviderSettings

TEST_SENDER: Final = "smsgw"
TEST_TEXT: Final = "This is a test of smsgw."


def known(gateway: Gateway, name: str) -> ProviderSettings:
    """What is set of an operator.

    Raises:
        InvalidRequest: there is none of that name.
    """
    settings = gateway.settings.providers.get(name)
    if settings is None:
        names = ", ".join(sorted(gateway.settings.providers)) or "none"
        raise InvalidRequest(
            f"There is no provider of that name; there is: {names}.",
            fields=[{"field": "provider", "message": "no such provider"}],
        )
    return settings


class ProviderRoutes:
    """Everything under ``/admin/providers``."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """All routes about operators."""
        return [
            Route("/admin/providers", self.list, methods=["GET"]),
            Route("/admin/providers/{name}", self.show, methods=["GET"]),
            Route("/admin/providers/{name}/enable", self.enable, methods=["POST"]),
            Route("/admin/providers/{name}/disable", self.disable, methods=["POST"]),
            Route("/admin/providers/{name}/test", self.test, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """All operators in the settings."""
        query(request.scope["query_string"], {})
        names = sorted(self._gateway.settings.providers)
        return Json({"data": [self._view(name) for name in names], "next_cursor": None})

    async def show(self, request: Request) -> Response:
        """One of them, with its settings, and with what its connections say."""
        query(request.scope["query_string"], {})
        return Json(self._whole(self._named(request)))

    async def enable(self, request: Request) -> Response:
        """Send through it again."""
        return await self._switch(request, on=True)

    async def disable(self, request: Request) -> Response:
        """Send nothing more through it, and close its connections."""
        return await self._switch(request, on=False)

    async def _switch(self, request: Request, *, on: bool) -> Response:
        name = self._named(request)
        await self._gateway.fleet.switch(name, on=on)
        return Json(self._whole(name))

    async def test(self, request: Request) -> Response:
        """Look at its connections or, with a number, send one SMS that nobody pays for.

        Raises:
            NotReady: there is no server whose connections could be tested.
        """
        name = self._named(request)
        wanted = parse(ProviderTest, await read_body(request.scope, request.receive))
        gateway = self._gateway
        if not gateway.serving:
            raise NotReady("This needs a running server: only that has connections to operators.")
        if wanted.to is None:
            state, why = self._state(name)
            return Json({"provider": name, "ok": state in ("up", "paused"), "detail": why or state})
        wish = Wish(wanted.to, wanted.sender or TEST_SENDER, wanted.text or TEST_TEXT)
        draft = gateway.entrance.draft(wish)
        before_s = gateway.clock.monotonic_s()
        outcome = await gateway.fleet.try_out(name, draft)
        parts = (outcome.parts or {1: outcome}).values()
        return Json(
            {
                "provider": name,
                "ok": outcome.verdict is Verdict.ACCEPTED,
                "verdict": outcome.verdict,
                "provider_message_ids": [
                    part.provider_message_id for part in parts if part.provider_message_id
                ],
                "detail": outcome.detail,
                "answer_ms": round(1000 * (gateway.clock.monotonic_s() - before_s)),
            }
        )

    def _named(self, request: Request) -> str:
        name: str = request.path_params["name"]
        known(self._gateway, name)
        return name

    def _state(self, name: str) -> tuple[str, str | None]:
        """How an operator is, in a word, and why."""
        gateway = self._gateway
        link = gateway.allotter.links[name]
        provider = gateway.providers.get(name)
        if not gateway.settings.providers[name].enabled:
            return "disabled", "enabled = false in the settings"
        if gateway.fleet.is_disabled(name):
            if gateway.fleet.changing(name):
                return "disabled", f"{link.in_flight} parts still have no answer"
            return "disabled", "by hand; see smsgw provider enable"
        if not gateway.serving:
            return "not running", None
        if gateway.fleet.changing(name):
            return "changing", "its connections are being exchanged"
        if provider is None or link.off:
            return "down", gateway.fleet.failed.get(name)
        if provider.trouble is not None:
            return "down", provider.trouble
        if link.probes():
            return "breaker open", f"{link.failures} submits in a row had no answer of use"
        if link.paused:
            return "paused", "by hand; see smsgw resume provider"
        return "up", provider.warning

    def _resting_until(self, link: Link) -> str | None:
        """Until when an operator is sent nothing because it said that it was too fast."""
        clock = self._gateway.clock
        left_s = link.resume_at_s - clock.monotonic_s()
        return rfc3339(clock.now_ms() + round(1000 * left_s)) if left_s > 0 else None

    def _view(self, name: str) -> dict[str, Any]:
        settings = self._gateway.settings.providers[name]
        link = self._gateway.allotter.links[name]
        state, why = self._state(name)
        return {
            "name": name,
            "kind": settings.kind,
            "state": state,
            "why": why,
            "resting_until": self._resting_until(link),
            "prefixes": list(settings.prefixes),
            "priority": settings.priority,
            "weight": settings.weight,
            "in_flight": link.in_flight,
            "window": settings.window,
            "rate_parts_per_s": settings.rate_parts_per_s,
            "answer_ms": round(1000 * link.answer_s) if link.answers else None,
        }

    def _whole(self, name: str) -> dict[str, Any]:
        provider = self._gateway.providers.get(name)
        return {
            **self._view(name),
            "paused": self._gateway.allotter.links[name].paused,
            "waiting": self._gateway.allotter.waiting_for(name),
            "connections": {} if provider is None else dict(provider.state()),
            "settings": self._gateway.settings.providers[name].model_dump(mode="json"),
        }
