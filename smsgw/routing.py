"""Which operators may carry a message: by prefix of the recipient's number."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

NO_ROUTE: Final[tuple[str, ...]] = ()
BEGUN: Final = ""
"""Stands first in a set of operators that is for messages of which some parts were accepted."""


@dataclass(slots=True, frozen=True)
class Operator:
    """What routing knows of an operator.

    No prefixes means every number. Operators whose ``splits`` are the same cut a long message into
    the same parts, so that one can go on where another has stopped; with empty ones it can go on
    only with its own, and with None not even with that.
    """

    name: str
    prefixes: tuple[str, ...] = ()
    splits: str | None = ""
    enabled: bool = True
    reports_parts: bool = True


@dataclass(slots=True, frozen=True)
class _Plan:
    """The operators by prefix.

    ``rests`` is where a message goes that one of several operators has failed to take, ``begun``
    where one goes that can no longer go to all, its rests included; ``numbers`` are those under
    which the catalog knows each set of operators; ``whole`` are those that report no parts.
    """

    sets: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, str | None]
    rests: frozenset[tuple[str, ...]]
    begun: frozenset[tuple[str, ...]]
    lengths: Sequence[int]
    whole: frozenset[str]
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

    def able(self, recipient: int, begun_by: str) -> tuple[str, ...]:
        """The set of those that can go on with what an operator has accepted some parts of."""
        names = self.eligible(recipient)
        able = _able(names, self.splits, begun_by)
        return able if able in (names, NO_ROUTE) else (BEGUN, *able)


def _able(
    names: tuple[str, ...], splits: Mapping[str, str | None], begun_by: str
) -> tuple[str, ...]:
    same = splits.get(begun_by)
    return tuple(
        name
        for name in names
        if (name == begun_by and same is not None) or (same and splits[name] == same)
    )


def operators_of(names: tuple[str, ...]) -> tuple[str, ...]:
    """The operators of a set."""
    return _without(names, BEGUN)


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)


def _alone(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other in (BEGUN, name))


def _narrower(names: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """What is left of a set without one of its operators, if anything is; and each alone."""
    operators = operators_of(names)
    if len(operators) > 1:
        yield from (_without(names, name) for name in operators)
        yield from (_alone(names, name) for name in operators)


def _plan_of(operators: Sequence[Operator]) -> _Plan:
    sets: dict[str, tuple[str, ...]] = {}
    for operator in operators:
        for prefix in operator.prefixes or ("",):
            if operator.enabled:
                digits = prefix.removeprefix("+")
                names = {*sets.get(digits, ()), operator.name}
                sets[digits] = tuple(sorted(names))
    splits = {operator.name: operator.splits for operator in operators}
    begun = {
        (BEGUN, *able)
        for names in sets.values()
        for one in splits
        if (able := _able(names, splits, one)) not in (names, NO_ROUTE)
    }
    wholes = {*sets.values(), *begun}
    rests = {rest for names in wholes for rest in _narrower(names)}
    begun |= {rest for names in begun for rest in _narrower(names)}
    lengths = sorted({len(prefix) for prefix in sets}, reverse=True)
    whole = frozenset(one.name for one in operators if not one.reports_parts)
    return _Plan(sets, splits, frozenset(rests - wholes), frozenset(begun), lengths, whole)


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
        plan = self._plan
        return {NO_ROUTE, *plan.sets.values(), *plan.rests, *plan.begun}

    def text(self) -> str:
        """Which prefix goes where, in one line: to see whether it has changed."""
        plan = self._plan
        found = [f"{prefix}>{','.join(plan.sets[prefix])}" for prefix in sorted(plan.sets)]
        return ";".join([*found, *(",".join(names) for names in sorted(plan.begun))])

    def number(self, numbers: Mapping[int, tuple[str, ...]]) -> None:
        """Learn the numbers under which the catalog knows the sets."""
        by_set = {names: number for number, names in numbers.items()}
        self._plan = replace(self._plan, numbers=by_set)

    def untried(
        self, recipient: int, route: int, failed: str, attempts: int, begun_by: str | None = None
    ) -> list[tuple[int, tuple[str, ...]]]:
        """Routes, and their operators, to those that have not failed to take a message.

        Its route tells which have. One route leads to all that are left, or one to each.

        Args:
            recipient: its number, given as its digits.
            route: the route on which it was.
            failed: the operator that has failed last.
            attempts: how many attempts there were: there are no more of those than operators.
            begun_by: which operator has accepted some parts of it, if one has.
        """
        plan = self._plan
        names = plan.able(recipient, begun_by) if begun_by else plan.eligible(recipient)
        if attempts >= len(operators_of(names)):
            return []
        on_route = (one for one in _narrower(names) if plan.numbers[one] == route)
        left = _without(next(on_route, names), failed)
        if left in plan.numbers:
            routes = [left]
        else:
            routes = [_alone(names, name) for name in operators_of(left)]
        return [(plan.numbers[one], operators_of(one)) for one in routes if operators_of(one)]

    def next_after(
        self, recipient: int, failed: str, begun_by: str | None = None
    ) -> tuple[int, tuple[str, ...]]:
        """The route, and its operators, for a message that one operator has failed to take.

        Args:
            recipient: its number, given as its digits.
            failed: the operator.
            begun_by: which operator has accepted some parts of it, if one has.
        """
        plan = self._plan
        names = plan.able(recipient, begun_by) if begun_by else plan.eligible(recipient)
        others = _without(names, failed)
        if not operators_of(others):
            others = names
        return plan.numbers[others], operators_of(others)

    def reports_whole(self, name: str) -> bool:
        """Whether an operator reports on whole messages only."""
        return name in self._plan.whole

    def begun(self, recipient: int, route: int, begun_by: str) -> int:
        """The route for a message that an operator has accepted some parts of.

        It is its own one, if whoever is there can go on with it.
        """
        plan = self._plan
        able = plan.able(recipient, begun_by)
        fit = (able, *_narrower(able))
        return route if route in (plan.numbers[names] for names in fit) else plan.numbers[able]

    def again(self, recipient: int, route: int) -> int:
        """The route for a message that comes back: its own, if that leaves out some operators."""
        plan = self._plan
        names = plan.eligible(recipient)
        able = {(BEGUN, *_able(names, plan.splits, one)) for one in names} & plan.begun
        narrower = {rest for one in (names, *able) for rest in _narrower(one)} | able
        if any(plan.numbers[rest] == route for rest in narrower):
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
