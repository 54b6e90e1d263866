"""What starting does about how the process ended: starting is recovery, whatever came before."""

from typing import Final

from smsgw import fairness, lifecycle
from smsgw.ids import generation_of
from smsgw.models import ANSWER_OTP_FAILED, Lane, Rules, Status
from smsgw.routing import Routing
from smsgw.store.shard import Shard
from smsgw.turn import OUTCOME, Request, Turn, Wants

STEP_MAX: Final = 200


class RecoverFlights(Request):
    """Decide about messages that were being sent; the answer is how many there were."""

    __slots__ = ("rules",)

    priority = OUTCOME

    def __init__(self, rules: Rules) -> None:
        super().__init__()
        self.rules = rules

    def needs(self, wants: Wants) -> None:
        """Some of them, with their accounts."""
        wants.asks.append(("message_in_flight", (STEP_MAX,)))

    def decide(self, turn: Turn) -> None:
        """One-time codes are closed, with the keys they ran under; others by ``on_uncertain``."""
        rows = turn.ask("message_in_flight", STEP_MAX)
        for (number,) in rows:
            message = turn.messages[number]
            if message.status != Status.SENDING or number in turn.elsewhere:
                # Another gateway has recovered it, while this one waited for its client.
                continue
            lifecycle.recover(turn, message, self.rules)
            if message.lane == Lane.OTP:
                left_cents = turn.accounts[message.client].credits_cents
                where = (generation_of(number), message.client, number)
                turn.write("key_close", ANSWER_OTP_FAILED, left_cents, *where)
        self.answer = len(rows)


class Reroute(Request):
    """Give queued messages of a route the route that the settings give them today."""

    __slots__ = ("after", "route", "routing")

    priority = OUTCOME

    def __init__(self, route: int, routing: Routing, after: tuple[int, int, int]) -> None:
        super().__init__()
        self.route = route
        self.routing = routing
        self.after = after

    def needs(self, wants: Wants) -> None:
        """Some of them."""
        wants.asks.append(("message_on_route", (self.route, *self.after, STEP_MAX)))

    def decide(self, turn: Turn) -> None:
        """Move each; the answer is the last place looked at, or None."""
        rows = turn.ask("message_on_route", self.route, *self.after, STEP_MAX)
        for number, _, _ in rows:
            message = turn.messages[number]
            if message.status != Status.QUEUED or message.route != self.route:
                # This very turn has cancelled it, or handed it over.
                continue
            route = self.routing.route(message.recipient)
            if route != message.route:
                fairness.rejoin(turn, message, route)
        self.answer = (rows[-1][1], rows[-1][2], rows[-1][0]) if rows else None


async def recover_flights(shard: Shard, rules: Rules) -> int:
    """Leave no message of a shard in ``SENDING``; returns how many there were."""
    count = 0
    while found := await shard.ask(RecoverFlights(rules)):
        count += found
    return count


async def reroute(shard: Shard, routing: Routing, routes: set[int]) -> None:
    """Bring a shard's queues in line with the operators of today.

    Args:
        shard: whose.
        routing: of today.
        routes: those with an operator; what waits on another may have got one.
    """
    for (route,) in await shard.store.read("routes_queued"):
        after: tuple[int, int, int] | None = (-1, -1, -1) if route >= 0 else None
        while after is not None and route not in routes:
            after = await shard.ask(Reroute(route, routing, after))
