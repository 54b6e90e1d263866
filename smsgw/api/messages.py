"""The routes of messages: send one or many, look, list, cancel, preview, verify."""

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from smsgw import logs
from smsgw.accounts import Cancel, CancelMany
from smsgw.admission import (
    Accepted,
    BatchProgress,
    Draft,
    KeyUse,
    Rejected,
    Replay,
    check_send_at,
    key_use,
)
from smsgw.api import views
from smsgw.api.edge import is_json, read_body
from smsgw.api.parsing import (
    FIELDS_MAX,
    batch_items,
    parse,
    query,
    unix_ms,
    uuid_in_path,
    wrong_field,
)
from smsgw.api.parsing import reads as read_as
from smsgw.api.quick import Answer, Refuse
from smsgw.api.schemas import (
    BatchItem,
    BatchRequest,
    CancelRequest,
    MessageRequest,
    PreviewRequest,
    VerifyRequest,
)
from smsgw.api.wire import Json, idempotency_key, read_key, send_json, to_json
from smsgw.archive import Archive, Filters
from smsgw.clock import rfc3339
from smsgw.codes import Decided, undeliverable
from smsgw.entrance import Wish
from smsgw.errors import (
    ConflictingOptions,
    InsufficientCredits,
    InternalError,
    InvalidRequest,
    ShuttingDown,
    SmsgwError,
    UnknownMessage,
    UnsupportedMediaType,
)
from smsgw.gateway import Gateway
from smsgw.ids import number_of, uuid_text
from smsgw.models import (
    ANSWER_OTP_FAILED,
    ANSWER_OTP_HANDSET,
    Batch,
    KeyRecord,
    Lane,
    Message,
    Status,
)
from smsgw.text import measure

CANCEL_STEP = 200

log = logs.get(__name__)


class MessageRoutes:
    """Everything under ``/v1/messages`` and ``/v1/batches``."""

    def __init__(self, gateway: Gateway, archive: Archive) -> None:
        self._gateway = gateway
        self._archive = archive
        self._replays: set[asyncio.Future[Any]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """``/v1/messages``: one plain function, since every message passes here."""
        if scope["method"] == "POST":
            try:
                await self._post(scope, receive, send)
            except SmsgwError as refusal:
                self._gateway.metrics.refused(refusal.code)
                raise
        else:
            response = await self.list(Request(scope, receive))
            await response(scope, receive, send)

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._gateway
        arrived_ms = gateway.clock.now_ms()
        request = parse(MessageRequest, await read_body(scope, receive))
        raw_key = idempotency_key(scope)
        key = None if raw_key is None else _key_of(request, raw_key)
        client_id = request.client_id.bytes
        if request.otp:
            await send_json(send, 200, await self._otp(client_id, request, key, arrived_ms))
            return
        draft = self._draft(request)
        answer = await gateway.entrance.submit(client_id, draft, key)
        if isinstance(answer, Replay):
            view = await self._replayed(client_id, answer.record, draft.send_at_ms is not None)
            await send_json(send, 202, view)
        else:
            await send_json(send, 202, views.accepted(answer))

    def take(
        self, fields: Mapping[bytes, bytes], body: bytes, answer: Answer, refuse: Refuse
    ) -> bool:
        """A POST by the short way: False for a one-time code, which needs more than one turn."""
        if body and not is_json(fields.get(b"content-type", b"")):
            raise self._refused(UnsupportedMediaType())
        try:
            request = parse(MessageRequest, body)
            if request.otp:
                return False
            raw_key = fields.get(b"idempotency-key")
            key = None if raw_key is None else _key_of(request, read_key((raw_key,)))
            draft = self._draft(request)
            client_id = request.client_id.bytes
            scheduled = draft.send_at_ms is not None

            def tell(outcome: Any, refusal: SmsgwError | None) -> None:
                if refusal is not None:
                    refuse(self._refused(refusal))
                elif isinstance(outcome, Accepted):
                    answer(202, views.accepted_json(outcome))
                else:
                    self._replay(client_id, outcome.record, scheduled, answer, refuse)

            self._gateway.entrance.post(client_id, draft, key, tell)
        except SmsgwError as refusal:
            raise self._refused(refusal) from None
        return True

    def _refused(self, refusal: SmsgwError) -> SmsgwError:
        self._gateway.metrics.refused(refusal.code)
        return refusal

    def _replay(
        self, client_id: bytes, record: KeyRecord, scheduled: bool, answer: Answer, refuse: Refuse
    ) -> None:
        """Look up the message of an earlier answer, and answer so again."""

        def found(task: asyncio.Task[dict[str, Any]]) -> None:
            self._replays.discard(task)
            error = ShuttingDown() if task.cancelled() else task.exception()
            if error is None:
                answer(202, to_json(task.result()))
            elif isinstance(error, SmsgwError):
                refuse(self._refused(error))
            else:
                log.error("request.failed", "An answer could not be repeated.", error=error)
                refuse(InternalError())

        task = asyncio.ensure_future(self._replayed(client_id, record, scheduled))
        self._replays.add(task)
        task.add_done_callback(found)

    def _draft(self, request: MessageRequest) -> Draft:
        if request.text is None:
            raise wrong_field("text", "is required")
        send_at = request.send_at
        return self._gateway.entrance.draft(
            Wish(
                request.to,
                request.sender,
                request.text,
                Lane.EXPRESS if request.express else Lane.REGULAR,
                request.reference,
                request.validity_s,
                None if send_at is None else unix_ms(send_at),
            )
        )

    async def _replayed(
        self, client_id: bytes, record: KeyRecord, scheduled: bool
    ) -> dict[str, Any]:
        """The 202 that a key was first answered with."""
        shard = self._gateway.shards.of_client(client_id)
        message = await self._archive.find(shard, record.subject)
        if message is None:
            raise UnknownMessage
        return views.accepted(Accepted(message, scheduled, record.credits_cents))

    def _otp_draft(self, request: MessageRequest) -> Draft:
        if request.express:
            raise ConflictingOptions("otp and express exclude each other.")
        if request.send_at is not None:
            raise ConflictingOptions("otp and send_at exclude each other.")
        masked, _ = self._gateway.otp.text_for(request.text)
        wish = Wish(request.to, request.sender, masked, Lane.OTP, request.reference)
        return self._gateway.entrance.draft(wish)

    async def _otp(
        self, client_id: bytes, request: MessageRequest, key: KeyUse | None, arrived_ms: int
    ) -> dict[str, Any]:
        draft = self._otp_draft(request)
        answer = await self._gateway.otp.send(client_id, draft, request.text, key, arrived_ms)
        if isinstance(answer, Decided):
            return _otp_view(answer)
        return await self._otp_replayed(client_id, answer.record)

    async def _otp_replayed(self, client_id: bytes, record: KeyRecord) -> dict[str, Any]:
        """What a key was first told; its code is null once used or expired."""
        shard = self._gateway.shards.of_client(client_id)
        message = await self._archive.find(shard, record.subject)
        if message is None:
            raise UnknownMessage
        if record.answer == ANSWER_OTP_FAILED:
            raise undeliverable(message)
        decided = Decided(message, record.answer, record.credits_cents)
        view = _otp_view(decided)
        rows = await shard.store.read("code_of", message.client, message.recipient, message.number)
        for expires_at_ms, used_at_ms in rows:
            alive = used_at_ms is None and expires_at_ms > self._gateway.clock.now_ms()
            view["otp_code"] = self._gateway.otp.code_of(message.id) if alive else None
            view["expires_at"] = rfc3339(expires_at_ms)
        return view

    async def batch(self, request: Request) -> Response:
        """``POST /v1/messages/batch``."""
        scope = request.scope
        envelope = parse(BatchRequest, await read_body(scope, request.receive))
        limit = self._gateway.settings.limits.batch_messages_max
        items = [self._batch_draft(item) for item in batch_items(envelope, limit)]
        client_id = envelope.client_id.bytes
        raw_key = idempotency_key(scope)
        key = None if raw_key is None else key_use(raw_key, "batch", _meaning(envelope))
        entrance = self._gateway.entrance
        answer: BatchProgress | Replay | None = await entrance.submit_batch(
            client_id, items, key, all_or_nothing=envelope.all_or_nothing
        )
        if isinstance(answer, Replay):
            assert key is not None
            record = answer.record
            await entrance.resume_batch(client_id, items, key, answer)
            batch = await self._archive.batch(client_id, record.subject)
            return await self._batch_again(client_id, batch, items)
        assert answer is not None
        return self._batch_answer(answer)

    def _batch_draft(self, item: BatchItem | SmsgwError) -> Draft | SmsgwError:
        if isinstance(item, SmsgwError):
            return item
        send_at = item.send_at
        wish = Wish(
            item.to,
            item.sender,
            item.text,
            Lane.EXPRESS if item.express else Lane.REGULAR,
            item.reference,
            item.validity_s,
            None if send_at is None else unix_ms(send_at),
        )
        try:
            return self._gateway.entrance.draft(wish)
        except SmsgwError as error:
            return error

    def _batch_answer(self, answer: BatchProgress) -> Response:
        results = []
        rejected: list[SmsgwError] = []
        for _, result in sorted(answer.results.items()):
            if isinstance(result, Rejected):
                rejected.append(result.error)
                results.append({"error": result.error.detail, "code": result.error.code})
            else:
                results.append(views.batch_item(result.message, scheduled=result.scheduled))
        if len(rejected) == len(results):
            raise _nothing_accepted(rejected, results)
        return _batch_view(answer.batch, results)

    async def _batch_again(
        self, client_id: bytes, batch: Batch, items: Sequence[Draft | SmsgwError]
    ) -> Response:
        """The answer to a batch once more, from what is stored of it."""
        accepted = iter(await self._archive.batch_messages(client_id, batch.number))
        rejected = {index: (code, says) for index, code, says in json.loads(batch.rejections)}
        results: list[dict[str, Any]] = []
        for index in range(batch.size):
            if index in rejected:
                code, says = rejected[index]
                results.append({"error": says, "code": code})
            else:
                item = items[index]
                scheduled = isinstance(item, Draft) and item.send_at_ms is not None
                results.append(views.batch_item(next(accepted), scheduled=scheduled))
        return _batch_view(batch, results)

    async def preview(self, request: Request) -> Response:
        """``POST /v1/messages/preview``: count and price, store nothing."""
        wanted = parse(PreviewRequest, await read_body(request.scope, request.receive))
        draft = self._otp_draft(wanted) if wanted.otp else self._draft(wanted)
        if draft.send_at_ms is not None:
            check_send_at(draft.send_at_ms, self._gateway.clock.now_ms())
        await self._archive.account(wanted.client_id.bytes)
        size = measure(draft.text)
        return Json(
            {
                "encoding": size.encoding,
                "parts": size.parts,
                "characters": size.characters,
                "cost": draft.cost_cents,
                "to": f"+{draft.recipient}",
            }
        )

    async def get(self, request: Request) -> Response:
        """``GET /v1/messages/{id}``."""
        identifier = uuid_in_path(request.path_params["id"])
        given = query(
            request.scope["query_string"], {"client_id": read_as.uuid, "wait_s": read_as.wait_s}
        )
        client_id = given.get("client_id")
        message = await self._archive.message(identifier, client_id)
        wait_s = given.get("wait_s")
        if wait_s and not message.is_final:
            await self._archive.wait_final(identifier, wait_s)
            message = await self._archive.message(identifier, client_id)
        return Json(await self._full(message))

    async def _full(self, message: Message) -> dict[str, Any]:
        owner = await self._archive.owner(message)
        view = views.message(message, owner.id, await self._batch_id(message))
        view["events"] = views.events(await self._archive.events(message))
        return view

    async def _batch_id(self, message: Message) -> bytes | None:
        if message.batch is None:
            return None
        shard = self._gateway.shards.of_message(message.id)
        rows = await shard.store.read("get_batch", message.batch)
        return rows[0][1] if rows else None

    async def list(self, request: Request) -> Response:
        """``GET /v1/messages``."""
        given = query(
            request.scope["query_string"],
            {
                "client_id": read_as.uuid,
                "status": read_as.status,
                "to": read_as.number,
                "reference": read_as.text,
                "batch_id": read_as.uuid,
                "since": read_as.time_ms,
                "until": read_as.time_ms,
                "limit": read_as.limit,
                "cursor": read_as.text,
            },
        )
        client_id = given.get("client_id")
        if client_id is None:
            raise wrong_field("client_id", "is required")
        batch = number_of(given["batch_id"]) if "batch_id" in given else None
        filters = Filters(
            status=Status[given["status"]] if "status" in given else None,
            recipient=self._recipient(given.get("to")),
            reference=given.get("reference"),
            batch=-1 if "batch_id" in given and batch is None else batch,
            since_ms=given.get("since"),
            until_ms=given.get("until"),
        )
        limit = given.get("limit", 50)
        rows, following = await self._archive.messages(
            client_id, filters, limit, given.get("cursor")
        )
        batches = {row.batch: await self._batch_id(row) for row in _one_a_batch(rows)}
        data = [views.message(row, client_id, batches.get(row.batch)) for row in rows]
        return Json({"data": data, "next_cursor": following})

    def _recipient(self, raw: str | None) -> int | None:
        return None if raw is None else self._gateway.entrance.recipient(raw)

    async def cancel(self, request: Request) -> Response:
        """``POST /v1/messages/{id}/cancel``."""
        identifier = uuid_in_path(request.path_params["id"])
        wanted = parse(CancelRequest, await read_body(request.scope, request.receive))
        client_id = wanted.client_id.bytes
        number = number_of(identifier)
        await self._archive.account(client_id)
        if number is None:
            raise UnknownMessage
        shard = self._gateway.shards.of_client(client_id)
        await shard.ask(Cancel(client_id, number, identifier))
        return Json(await self._full(await self._archive.message(identifier, client_id)))

    async def cancel_batch(self, request: Request) -> Response:
        """``POST /v1/batches/{batch_id}/cancel``."""
        identifier = uuid_in_path(request.path_params["batch_id"])
        wanted = parse(CancelRequest, await read_body(request.scope, request.receive))
        client_id = wanted.client_id.bytes
        batch = await self._archive.batch(client_id, number_of(identifier) or -1)
        if batch.id != identifier:
            raise UnknownMessage("There is no such batch.")
        shard = self._gateway.shards.of_client(client_id)
        cancelled = seen = after = 0
        while rows := await shard.store.read("batch_page", batch.number, after, CANCEL_STEP):
            numbers = [number for (number,) in rows]
            cancelled += await shard.ask(CancelMany(client_id, numbers))
            seen += len(numbers)
            after = numbers[-1]
        return Json({"cancelled": cancelled, "left": seen - cancelled})

    async def verify(self, request: Request) -> Response:
        """``POST /v1/otp/verify``."""
        wanted = parse(VerifyRequest, await read_body(request.scope, request.receive))
        recipient = self._gateway.entrance.recipient(wanted.to)
        verified, identifier, left = await self._gateway.otp.verify(
            wanted.client_id.bytes, recipient, wanted.code
        )
        return Json(
            {"verified": verified, "message_id": uuid_text(identifier), "attempts_left": left}
        )


def _otp_view(decided: Decided) -> dict[str, Any]:
    message = decided.message
    handset = decided.answer == ANSWER_OTP_HANDSET
    view: dict[str, Any] = {
        "message_id": uuid_text(message.id),
        "status": "DELIVERED" if handset else "SENT",
        "confirmed_by": "handset" if handset else "operator",
    }
    if decided.code is not None and decided.expires_at_ms is not None:
        view["otp_code"] = decided.code
        view["expires_at"] = rfc3339(decided.expires_at_ms)
    view["parts"] = message.parts
    view["encoding"] = views.encoding(message)
    view["cost"] = message.cost_cents
    view["credits"] = decided.credits_cents
    return view


def _key_of(request: MessageRequest, key: str) -> KeyUse:
    """What an Idempotency-Key stands for, with everything of a message that matters."""
    return key_use(
        key,
        "messages",
        request.to,
        request.sender,
        request.text,
        request.otp,
        request.express,
        request.reference,
        request.validity_s,
        request.send_at,
    )


def _batch_view(batch: Batch, results: list[dict[str, Any]]) -> Response:
    return Json(
        {
            "batch_id": uuid_text(batch.id),
            "accepted": batch.accepted,
            "rejected": batch.size - batch.accepted,
            "credits": batch.credits_cents,
            "results": results,
        },
        202,
    )


def _nothing_accepted(rejected: list[SmsgwError], results: list[dict[str, Any]]) -> SmsgwError:
    members: dict[str, Any] = {"accepted": 0, "rejected": len(rejected), "results": results}
    if all(isinstance(error, InsufficientCredits) for error in rejected):
        required = min(error.members["required"] for error in rejected)
        left = rejected[-1].members["credits"]
        return InsufficientCredits(
            f"None of the messages is covered by {left} cents.",
            required=required,
            credits=left,
            **members,
        )
    fields = [
        {"field": f"messages.{index}", "message": error.detail}
        for index, error in enumerate(rejected[:FIELDS_MAX])
    ]
    return InvalidRequest("None of the messages was accepted.", fields=fields, **members)


def _meaning(envelope: BatchRequest) -> str:
    """What a batch asks for, however its members are ordered."""
    return json.dumps(envelope.model_dump(exclude={"client_id"}), sort_keys=True, default=str)


def _one_a_batch(rows: list[Message]) -> list[Message]:
    return list({row.batch: row for row in rows if row.batch is not None}.values())
