"""The admin API: clients, credit, pausing, what waits, the audit. On the Unix socket only."""

import asyncio
import uuid
from collections import Counter
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from smsgw.accounts import AddClient, Adjust, PauseClient
from smsgw.admission import key_use
from smsgw.api import views
from smsgw.api.edge import read_body
from smsgw.api.parsing import parse, query, uuid_in_path
from smsgw.api.providers import known
from smsgw.api.schemas import ClientCreate, CreditAdjust, PauseRequest
from smsgw.api.status import StatusRoutes
from smsgw.api.wire import Json
from smsgw.archive import Archive
from smsgw.clock import rfc3339
from smsgw.errors import AlreadyExists, SmsgwError
from smsgw.gateway import Gateway
from smsgw.ids import uuid_text
from smsgw.models import Lane, Message
from smsgw.store.catalog import PAUSE_ALL
from smsgw.store.shard import Shard

LIST_MAX: Final = 1000


class AdminRoutes:
    """Everything under ``/admin``."""

    def __init__(self, gateway: Gateway, archive: Archive) -> None:
        self._gateway = gateway
        self._archive = archive

    def routes(self) -> list[Route]:
        """All admin routes."""
        return [
            Route("/admin/clients", self.create_client, methods=["POST"]),
            Route("/admin/clients", self.list_clients, methods=["GET"]),
            Route("/admin/clients/{id}", self.show_client, methods=["GET"]),
            Route("/admin/clients/{id}/add", self.add_credit, methods=["POST"]),
            Route("/admin/clients/{id}/deduct", self.deduct_credit, methods=["POST"]),
            Route("/admin/pause", self.pause, methods=["POST"]),
            Route("/admin/resume", self.resume, methods=["POST"]),
            Route("/admin/status", self.status, methods=["GET"]),
            Route("/admin/shards", self.shards, methods=["GET"]),
            Route("/admin/audit", self.audit, methods=["GET"]),
            Route("/admin/receipts/parked", self.parked, methods=["GET"]),
            Route("/admin/messages/uncertain", self.uncertain, methods=["GET"]),
        ]

    async def create_client(self, request: Request) -> Response:
        """Create a client, perhaps with credit."""
        wanted = parse(ClientCreate, await read_body(request.scope, request.receive))
        client_id = (wanted.id or uuid.uuid4()).bytes
        shard = self._gateway.shards.of_client(client_id)
        account, new = await shard.ask(
            AddClient(client_id, wanted.name, wanted.weight, wanted.credit_cents)
        )
        if not new:
            raise AlreadyExists(f"There is a client {uuid_text(client_id)} already.")
        return Json(views.client(account), 201)

    async def list_clients(self, request: Request) -> Response:
        """All clients."""
        query(request.scope["query_string"], {})
        data = [views.client(account) for account in await self._archive.clients()]
        return Json({"data": data, "next_cursor": None})

    async def show_client(self, request: Request) -> Response:
        """One client."""
        account = await self._archive.account(uuid_in_path(request.path_params["id"]))
        return Json(views.client(account))

    async def add_credit(self, request: Request) -> Response:
        """Add to a client's credit."""
        return await self._adjust(request, 1)

    async def deduct_credit(self, request: Request) -> Response:
        """Take from a client's credit; never below zero."""
        return await self._adjust(request, -1)

    async def _adjust(self, request: Request, sign: int) -> Response:
        client_id = uuid_in_path(request.path_params["id"])
        wanted = parse(CreditAdjust, await read_body(request.scope, request.receive))
        amount_cents = sign * wanted.amount_cents
        key = None
        if wanted.key is not None:
            key = key_use(f"credit {wanted.key}", "credit", amount_cents, wanted.note)
        shard = self._gateway.shards.of_client(client_id)
        account = await shard.ask(Adjust(client_id, amount_cents, wanted.note, key))
        return Json(views.client(account))

    async def pause(self, request: Request) -> Response:
        """Stop claiming: for all, for a client or for an operator."""
        return await self._pause(request, paused=True)

    async def resume(self, request: Request) -> Response:
        """Go on claiming."""
        return await self._pause(request, paused=False)

    async def _pause(self, request: Request, *, paused: bool) -> Response:
        wanted = parse(PauseRequest, await read_body(request.scope, request.receive))
        gateway = self._gateway
        if wanted.client_id is not None:
            client_id = wanted.client_id.bytes
            shard = gateway.shards.of_client(client_id)
            account = await shard.ask(PauseClient(client_id, paused=paused))
            if not paused:
                await gateway.unshelve(client_id, account.number)
            await gateway.count_paused()
        elif wanted.provider is not None:
            known(gateway, wanted.provider)
            await gateway.pause(wanted.provider, paused=paused)
        else:
            await gateway.pause(PAUSE_ALL, paused=paused)
        return Json(await self._state())

    async def status(self, request: Request) -> Response:
        """How the gateway is."""
        query(request.scope["query_string"], {})
        return Json(await self._state())

    async def _state(self) -> dict[str, Any]:
        gateway = self._gateway
        try:
            ready: dict[str, Any] = StatusRoutes(gateway).judge()
        except SmsgwError as error:
            ready = {"status": error.code, "detail": error.detail, **error.members}
        shards = [await self._shard(shard) for shard in gateway.shards]
        paused = [
            uuid_text(account.id) for account in await self._archive.clients() if account.paused
        ]
        return {
            "ready": ready,
            "serving": gateway.serving,
            "paused": {
                "all": gateway.allotter.paused,
                "providers": sorted(
                    gateway.shards.catalog.paused & gateway.settings.providers.keys()
                ),
                "clients": paused,
            },
            "queued": {
                "regular": gateway.allotter.waiting(Lane.REGULAR),
                "express": gateway.allotter.waiting(Lane.EXPRESS),
            },
            "in_flight": gateway.worker.in_flight(),
            "receipts_parked": gateway.receipts.parked.rows,
            "providers": {
                name: {"trouble": provider.trouble, "paused": gateway.allotter.links[name].paused}
                for name, provider in gateway.providers.items()
            },
            "shards": shards,
        }

    async def _shard(self, shard: Shard) -> dict[str, Any]:
        clients, free, held, charged, waiting = (await shard.store.read("clients_sums"))[0]
        return {
            "shard": shard.number,
            "clients": clients,
            "credits": free,
            "held": held,
            "charged": charged,
            "waiting": waiting,
            "wal_bytes": shard.store.wal_bytes(),
            "trouble": shard.trouble,
        }

    async def shards(self, request: Request) -> Response:
        """Where every shard is, and what is in it."""
        query(request.scope["query_string"], {})
        catalog = self._gateway.shards.catalog
        slots = Counter(catalog.shard_of_slot)
        data = [
            {
                "address": catalog.shards[shard.number],
                "slots": slots[shard.number],
                **await self._shard(shard),
            }
            for shard in self._gateway.shards
        ]
        return Json({"data": data, "next_cursor": None})

    async def audit(self, request: Request) -> Response:
        """Prove every shard."""
        query(request.scope["query_string"], {})
        proofs = await asyncio.gather(*(shard.store.audit() for shard in self._gateway.shards))
        findings = [finding for proof in proofs for finding in proof.findings]
        return Json(
            {
                "clean": not findings,
                "shards": [
                    {
                        "shard": proof.shard,
                        "clients": proof.clients,
                        "messages": proof.messages,
                        "entries": proof.entries,
                        "credits": proof.credits_cents,
                        "held": proof.held_cents,
                        "charged": proof.charged_cents,
                    }
                    for proof in proofs
                ],
                "findings": [
                    {
                        "shard": finding.shard,
                        "client_id": finding.client_id,
                        "check": finding.check,
                        "detail": finding.sentence,
                    }
                    for finding in findings
                ],
            }
        )

    async def parked(self, request: Request) -> Response:
        """Receipts that wait for their messages."""
        query(request.scope["query_string"], {})
        data = [
            {
                "provider": provider,
                "provider_message_id": identifier,
                "at": rfc3339(at_ms),
                "status": word,
                "reason": reason,
            }
            for shard in self._gateway.shards
            for provider, identifier, at_ms, word, reason in await shard.store.read(
                "parked_list", LIST_MAX
            )
        ]
        return Json({"data": data, "next_cursor": None})

    async def uncertain(self, request: Request) -> Response:
        """Messages of which nobody knows whether they left."""
        query(request.scope["query_string"], {})
        data = []
        for shard in self._gateway.shards:
            for row in await shard.store.read("uncertain_list", LIST_MAX):
                message = Message(*row)
                owner = await self._archive.owner(message)
                data.append(views.message(message, owner.id, None))
        return Json({"data": data, "next_cursor": None})
