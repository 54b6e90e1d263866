"""From what somebody asked for to a turn: checks, prices, limits, and the express promise.

Every way in (REST, command line) uses this one door, so that a message is judged the same however
it came.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from smsgw.admission import (
    Accepted,
    Admit,
    AdmitBatch,
    BatchProgress,
    Draft,
    KeyUse,
    Rejected,
    Replay,
)
from smsgw.allotter import Allotter
from smsgw.clock import Clock
from smsgw.errors import (
    ExpressGuaranteeUnavailable,
    IdempotencyInProgress,
    InvalidRecipient,
    InvalidRequest,
    ShuttingDown,
    SmsgwError,
    StorageUnavailable,
    TextTooLong,
    TooManyRequests,
)
from smsgw.links import Bucket
from smsgw.metrics import Metrics
from smsgw.models import ANSWER_RUNNING, Batch, Lane, Rules
from smsgw.numbers import Numbers, sender
from smsgw.routing import Routing
from smsgw.settings import Settings
from smsgw.store.shard import Shard
from smsgw.store.shards import Shards
from smsgw.tariff import Tariff
from smsgw.text import measure, refuse_text
from smsgw.turn import Tell

BATCH_STEP: Final = 50
BATCH_PAUSE_S: Final = 0.05
_CLIENTS_MAX: Final = 100_000
_GSM7_PART: Final = 160


@dataclass(slots=True)
class Wish:
    """A message as somebody asked for it: types are right, nothing else is known."""

    recipient: str
    sender: str
    text: str
    lane: Lane = Lane.REGULAR
    reference: str | None = None
    validity_s: int | None = None
    send_at_ms: int | None = None


class Entrance:
    """The one door for messages."""

    def __init__(
        self,
        settings: Settings,
        rules: Rules,
        clock: Clock,
        routing: Routing,
        allotter: Allotter,
        shards: Shards,
        metrics: Metrics,
    ) -> None:
        self.rules = rules
        self.closed = False
        self.disk_full = False
        self._limits = settings.limits
        self._refuses_unrouted = settings.limits.unrouted == "refuse"
        self._regular_share = settings.delivery.regular_share
        self._clock = clock
        self._routing = routing
        self._allotter = allotter
        self._shards = shards
        self._metrics = metrics
        self._numbers = Numbers(settings.numbers.default_region)
        billing = settings.billing
        self.tariff = Tariff(billing.part_cents, billing.express_part_cents, billing.otp_part_cents)
        self._buckets: OrderedDict[bytes, Bucket] = OrderedDict()
        self._express_coming = 0
        self._batches_running: set[int] = set()
        self._rests: set[asyncio.Future[Any]] = set()

    def draft(self, wish: Wish) -> Draft:
        """Check, count and price a message.

        Raises:
            InvalidRecipient: its recipient is no E.164 number, or one that nobody serves.
            InvalidSender: its sender is no number, short code or name.
            InvalidRequest: its text holds what no text may.
            TextTooLong: it needs too many parts.
        """
        recipient = self._numbers.recipient(wish.recipient)
        source = sender(wish.sender)
        text = wish.text
        complaint = refuse_text(text)
        if complaint:
            raise InvalidRequest(
                f"text: {complaint}", fields=[{"field": "text", "message": complaint}]
            )
        parts_max = self._limits.parts_max
        if len(text) > parts_max * _GSM7_PART:
            raise TextTooLong(f"The text needs more than {parts_max} parts.")
        size = measure(text)
        if size.parts > parts_max:
            raise TextTooLong(f"The text needs {size.parts} parts; {parts_max} are allowed.")
        digits = int(recipient[1:])
        if self._refuses_unrouted and not self._routing.eligible(digits):
            raise InvalidRecipient("No operator serves this number.")
        return Draft(
            digits,
            source,
            text,
            size.encoding == "UCS-2",
            size.parts,
            wish.lane,
            self.tariff.cost_cents(wish.lane, size.parts),
            self.tariff.surcharge_cents(wish.lane, size.parts),
            self._routing.route(digits),
            wish.reference,
            None if wish.validity_s is None else wish.validity_s * 1000,
            wish.send_at_ms,
        )

    def recipient(self, raw: str) -> int:
        """The digits of a recipient's number.

        Raises:
            InvalidRecipient: it is no E.164 number.
        """
        return int(self._numbers.recipient(raw)[1:])

    def open_for(self, client_id: bytes, messages: int = 1) -> Shard:
        """The client's shard, if the gateway takes messages from the client now.

        Raises:
            ShuttingDown: it does not any more.
            StorageUnavailable: there is too little room on the disk.
            TooManyRequests: the client is over its rate.
        """
        if self.closed:
            raise ShuttingDown(retry_after_s=5)
        if self.disk_full:
            raise StorageUnavailable(
                "There is too little room on the disk.", retry_after_s=30, outcome="none"
            )
        rate = self._limits.client_rate_per_s
        if rate:
            self._take_rate(client_id, messages, rate / self._shards.gateways)
        return self._shards.of_client(client_id)

    def _take_rate(self, client_id: bytes, messages: int, rate: float) -> None:
        """Take what a client sends from this gateway's share of its rate."""
        now_s = self._clock.monotonic_s()
        bucket = self._buckets.get(client_id)
        if bucket is None:
            if len(self._buckets) >= _CLIENTS_MAX:
                self._buckets.popitem(last=False)
            bucket = Bucket(rate, burst_s=1.0, tokens=max(1.0, rate), at_s=now_s)
            self._buckets[client_id] = bucket
        bucket.rate_per_s = rate
        if bucket.refill(now_s) < 1:
            wait_s = (1 - bucket.tokens) / rate
            raise TooManyRequests(
                f"This client may send {self._limits.client_rate_per_s:g} messages a second.",
                retry_after_s=wait_s,
            )
        # A batch larger than what is left is paid for by waiting afterwards.
        bucket.tokens -= messages

    def backlog(self) -> int:
        """How many messages wait, over all shards: queued, scheduled or for a retry."""
        return sum(shard.store.waits for shard in self._shards)

    async def submit(self, client_id: bytes, draft: Draft, key: KeyUse | None) -> Accepted | Replay:
        """Accept one message; returns once it is on disk.

        Raises:
            SmsgwError: what it was refused with; nothing was written.
        """
        future = asyncio.get_running_loop().create_future()

        def tell(answer: Any, refusal: SmsgwError | None) -> None:
            if future.done():
                return
            if refusal is None:
                future.set_result(answer)
            else:
                future.set_exception(refusal)

        self.post(client_id, draft, key, tell)
        answer: Accepted | Replay = await future
        return answer

    def post(self, client_id: bytes, draft: Draft, key: KeyUse | None, tell: Tell) -> None:
        """The same without waiting: tells the answer, or the refusal, once it is on disk.

        Raises:
            SmsgwError: what it was refused with at the door; then nobody is told.
        """
        shard = self.open_for(client_id)
        said_no = None
        express_parts = 0
        if draft.lane is Lane.EXPRESS:
            said_no = self._promise(shard, client_id, draft)
            express_parts = draft.parts

        def told(answer: Any, refusal: SmsgwError | None) -> None:
            self._express_coming -= express_parts
            if isinstance(answer, Accepted):
                self._metrics.accepted(_LANE_NAMES[draft.lane], 1, draft.parts)
            tell(answer, refusal)

        shard.put(Admit(client_id, draft, key, self.rules, self.backlog(), said_no, told))
        self._express_coming += express_parts

    def _promise(self, shard: Shard, client_id: bytes, draft: Draft) -> SmsgwError | None:
        """Whether an express message can be handed over in time; a schedule is trusted to be."""
        if draft.send_at_ms is not None:
            return None
        capacity = self._express_parts_max(draft.route)
        waiting = self._express_coming + sum(
            other.store.lane_parts.get((draft.route, int(Lane.EXPRESS)), 0)
            for other in self._shards
        )
        mine, weight, weights = shard.store.express_share(client_id, draft.route)
        fair = capacity * weight / (weights + 1)
        if waiting + draft.parts <= capacity and mine + draft.parts <= max(fair, draft.parts):
            return None
        return ExpressGuaranteeUnavailable(retry_after_s=max(1.0, self._guarantee_s() / 10))

    def _guarantee_s(self) -> float:
        return self.rules.guarantee_ms / 1000

    def _express_parts_max(self, route: int) -> float:
        """How many express parts fit into the guarantee, with a tenth of it as margin."""
        if self._allotter.paused or self._allotter.stopped:
            return 0.0
        rate_per_s = sum(
            link.healthy_rate_per_s()
            for name in self._allotter.routes.get(route, ())
            if (link := self._allotter.links[name]).counts
        )
        return 0.9 * self._guarantee_s() * rate_per_s * (1 - self._regular_share)

    async def submit_batch(
        self,
        client_id: bytes,
        items: Sequence[Draft | SmsgwError],
        key: KeyUse | None,
        *,
        all_or_nothing: bool = False,
    ) -> BatchProgress | Replay:
        """Accept many messages; a large batch spreads over several turns.

        Raises:
            SmsgwError: what all of it was refused with; nothing was written.
        """
        size = len(items)
        shard = self.open_for(client_id, size)
        items, promised = self._with_promises(shard, client_id, items)
        step = size if all_or_nothing else BATCH_STEP
        request = AdmitBatch(
            client_id,
            items[:step],
            self.rules,
            self.backlog(),
            size=size,
            all_or_nothing=all_or_nothing,
            key=key,
        )
        try:
            answer = await shard.ask(request)
            if isinstance(answer, Replay):
                return answer
            return await self._go_on(shard, client_id, items, key, answer)
        finally:
            self._express_coming -= promised

    async def resume_batch(
        self,
        client_id: bytes,
        items: Sequence[Draft | SmsgwError],
        key: KeyUse,
        replay: Replay,
    ) -> BatchProgress | None:
        """Finish a batch that a crash has interrupted; None where it is complete.

        Raises:
            IdempotencyInProgress: it is being worked on.
        """
        if replay.record.answer != ANSWER_RUNNING:
            return None
        number = replay.record.subject
        if number in self._batches_running:
            raise IdempotencyInProgress(retry_after_s=1)
        shard = self.open_for(client_id)
        self._batches_running.add(number)
        try:
            rows = await shard.store.read("get_batch", number)
        except BaseException:
            self._batches_running.discard(number)
            raise
        progress = BatchProgress(Batch(*rows[0]), {})
        return await self._go_on(shard, client_id, items, key, progress)

    async def _go_on(
        self,
        shard: Shard,
        client_id: bytes,
        items: Sequence[Draft | SmsgwError],
        key: KeyUse | None,
        progress: BatchProgress,
    ) -> BatchProgress:
        """Work through the rest of a batch, in a task that a caller who hangs up does not end."""
        results = dict(progress.results)
        number = progress.batch.number
        if progress.batch.done == progress.batch.size:
            self._batches_running.discard(number)
        else:
            # Before the task begins: a request with the same key may have been in the same turn.
            self._batches_running.add(number)
            rest = asyncio.ensure_future(self._rest(shard, client_id, items, key, progress))
            self._rests.add(rest)
            rest.add_done_callback(self._rests.discard)
            progress, more = await asyncio.shield(rest)
            results |= more
        self._count(results)
        return BatchProgress(progress.batch, results)

    async def drain(self) -> None:
        """Wait for batches that have begun."""
        while self._rests:
            await asyncio.wait(set(self._rests))

    async def _rest(
        self,
        shard: Shard,
        client_id: bytes,
        items: Sequence[Draft | SmsgwError],
        key: KeyUse | None,
        progress: BatchProgress,
    ) -> tuple[BatchProgress, dict[int, Accepted | Rejected]]:
        batch = progress.batch
        results: dict[int, Accepted | Rejected] = {}
        try:
            while batch.done < batch.size:
                request = AdmitBatch(
                    client_id,
                    items[batch.done : batch.done + BATCH_STEP],
                    self.rules,
                    self.backlog(),
                    size=batch.size,
                    key=key,
                    progress=progress,
                )
                try:
                    progress = await shard.ask(request)
                except TooManyRequests:
                    # It has begun, so it waits for its turn instead of being refused.
                    await asyncio.sleep(BATCH_PAUSE_S)
                    continue
                except StorageUnavailable as error:
                    error.members["outcome"] = "unknown"
                    raise
                batch = progress.batch
                results |= progress.results
        finally:
            self._batches_running.discard(batch.number)
        return progress, results

    def _with_promises(
        self, shard: Shard, client_id: bytes, items: Sequence[Draft | SmsgwError]
    ) -> tuple[Sequence[Draft | SmsgwError], int]:
        """Refuse those express items for which no promise can be given, and count the others in.

        Returns:
            The items as judged, and how many parts were promised; the caller counts them out.
        """
        judged: list[Draft | SmsgwError] = []
        promised = 0
        for item in items:
            said_no = None
            if isinstance(item, Draft) and item.lane is Lane.EXPRESS:
                said_no = self._promise(shard, client_id, item)
                if said_no is None:
                    promised += item.parts
                    self._express_coming += item.parts
            judged.append(said_no or item)
        return judged, promised

    def _count(self, results: dict[int, Accepted | Rejected]) -> None:
        for result in results.values():
            if isinstance(result, Accepted):
                message = result.message
                self._metrics.accepted(_LANE_NAMES[message.lane], 1, message.parts)
            else:
                self._metrics.refused(result.error.code)


_LANE_NAMES: Final[Any] = {Lane.REGULAR: "regular", Lane.EXPRESS: "express", Lane.OTP: "otp"}
