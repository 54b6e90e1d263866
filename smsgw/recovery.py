"""What starting does about how the process ended: starting is recovery, whatever came before."""

from typing import Final

from smsgw import lifecycle
from smsgw.models import ANSWER_OTP_FAILED, Lane, Rules
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
            lifecycle.recover(turn, message, self.rules)
            if message.lane == Lane.OTP:
                account = turn.accounts[message.client]
                turn.write(
                    "key_close", ANSWER_OTP_FAILED, account.credits_cents, message.client, number
                )
        self.answer = len(rows)


class Reroute(Request):
    """Give queued messages of a route that is no more the route that the settings give them."""

    __slots__ = ("route", "routing")

    priority = OUTCOME

    def __init__(self, route: int, routing: Routing) -> None:
        super().__init__()
        self.route = route
        self.routing = routing

    def needs(self, wants: Wants) -> None:
        """Some of them."""
        wants.asks.append(("message_on_route", (self.route, STEP_MAX)))

    def decide(self, turn: Turn) -> None:
        """Move each at its old rank; the answer is how many there were."""
        rows = turn.ask("message_on_route", self.route, STEP_MAX)
        for (number,) in rows:
            message = turn.messages[number]
            turn.dequeue(message)
            turn.touch(message)
            message.route = self.routing.route(message.recipient)
            turn.enqueue(message)
        self.answer = len(rows)


async def recover_flights(shard: Shard, rules: Rules) -> int:
    """Leave no message of a shard in ``SENDING``; returns how many there were."""
    count = 0
    while found := await shard.ask(RecoverFlights(rules)):
        count += found
    return count


async def reroute(shard: Shard, routing: Routing, routes: set[int]) -> None:
    """Bring a shard's queues in line with the operators of today."""
    for (route,) in await shard.store.read("routes_queued"):
        if route >= 0 and route not in routes:
            while await shard.ask(Reroute(route, routing)):
                pass
