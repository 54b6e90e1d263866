"""Which operators may carry a message: by prefix of the recipient's number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

NO_ROUTE: Final[tuple[str, ...]] = ()


@dataclass(slots=True, frozen=True)
class Operator:
    """What routing knows of an operator; no prefixes means every number."""

    name: str
    prefixes: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class _Plan:
    """The operators by prefix.

    ``rests`` is where a message goes that one of several operators has failed to take; ``numbers``
    are those under which the catalog knows each set of operators.
    """

    sets: Mapping[str, tuple[str, ...]]
    rests: frozenset[tuple[str, ...]]
    lengths: Sequence[int]
    numbers: Mapping[tuple[str, ...], int] = field(default_factory=dict)

    def eligible(self, recipient: int) -> tuple[str, ...]:
        """The names of the operators for a number."""
        if self.lengths == [0]:
            return self.sets[""]
        digits = str(recipient)
        for length in self.lengths:
            names = self.sets.get(digits[:length])
            if names is not None:
                return names
        return NO_ROUTE


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def _plan_of(operators: Sequence[Operator]) -> _Plan:
    sets: dict[str, tuple[str, ...]] = {}
    for operator in operators:
        for prefix in operator.prefixes or ("",):
            digits = prefix.removeprefix("+")
            names = {*sets.get(digits, ()), operator.name}
            sets[digits] = tuple(sorted(names))
    several = [names for names in sets.values() if len(names) > 1]
    rests = {_without(names, name) for names in several for name in names}
    lengths = sorted({len(prefix) for prefix in sets}, reverse=True)
    return _Plan(sets, frozenset(rests - set(sets.values())), lengths)


class Routing:
    """The operators a number may go to: those with the longest matching prefix.

    It is asked by the shards' threads, too, and may change meanwhile: so all that it knows is in
    one place, and every answer is from one look at it.
    """

    def __init__(self, operators: Sequence[Operator]) -> None:
        self._plan = _plan_of(operators)

    def follow(self, other: "Routing") -> None:
        """Answer from now on as another one does."""
        self._plan = other._plan

    def sets(self) -> set[tuple[str, ...]]:
        """Every set of operators that a message may be routed to, the empty one included."""
        return {NO_ROUTE, *self._plan.sets.values(), *self._plan.rests}

    def text(self) -> str:
        """Which prefix goes where, in one line: to see whether it has changed."""
        sets = self._plan.sets
        return ";".join(f"{prefix}>{','.join(sets[prefix])}" for prefix in sorted(sets))

    def number(self, numbers: Mapping[int, tuple[str, ...]]) -> None:
        """Learn the numbers under which the catalog knows the sets."""
        by_set = {names: number for number, names in numbers.items()}
        self._plan = replace(self._plan, numbers=by_set)

    def next_after(self, recipient: int, failed: str) -> tuple[int, tuple[str, ...]]:
        """The route, and its operators, for a message that one operator has failed to take."""
        plan = self._plan
        names = plan.eligible(recipient)
        others = _without(names, failed) or names
        return plan.numbers[others], others

    def again(self, recipient: int, route: int) -> int:
        """The route for a message that comes back: its own, if that leaves out one operator."""
        plan = self._plan
        names = plan.eligible(recipient)
        rests = (_without(names, name) for name in names if len(names) > 1)
        if any(plan.numbers[rest] == route for rest in rests):
            return route
        return plan.numbers[names]

    def rests(self) -> set[int]:
        """The routes that only lead where another operator has failed."""
        plan = self._plan
        return {plan.numbers[names] for names in plan.rests}

    def is_stale(self, route: int) -> bool:
        """Whether a route is none of today's; paused clients' shelves are not looked at."""
        return route >= 0 and route not in self._plan.numbers.values()

    def eligible(self, recipient: int) -> tuple[str, ...]:
        """The names of the operators for a number, given as its digits."""
        return self._plan.eligible(recipient)

    def route(self, recipient: int) -> int:
        """The number of the route for a recipient."""
        plan = self._plan
        return plan.numbers[plan.eligible(recipient)]
