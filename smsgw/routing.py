"""Which operators may carry a message: by prefix of the recipient's number."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

NO_ROUTE: tuple[str, ...] = ()


@dataclass(slots=True, frozen=True)
class Operator:
    """What routing knows of an operator; no prefixes means every number."""

    name: str
    prefixes: tuple[str, ...] = ()


class Routing:
    """The operators a number may go to: those with the longest matching prefix."""

    def __init__(self, operators: Sequence[Operator]) -> None:
        self._sets: dict[str, tuple[str, ...]] = {}
        for operator in operators:
            for prefix in operator.prefixes or ("",):
                digits = prefix.removeprefix("+")
                names = {*self._sets.get(digits, ()), operator.name}
                self._sets[digits] = tuple(sorted(names))
        self._lengths = sorted({len(prefix) for prefix in self._sets}, reverse=True)
        self._numbers: dict[tuple[str, ...], int] = {}

    def sets(self) -> set[tuple[str, ...]]:
        """Every set of operators that a number may be routed to, the empty one included."""
        return {NO_ROUTE, *self._sets.values()}

    def text(self) -> str:
        """Which prefix goes where, in one line: to see whether it has changed."""
        return ";".join(f"{prefix}>{','.join(self._sets[prefix])}" for prefix in sorted(self._sets))

    def number(self, numbers: Mapping[int, tuple[str, ...]]) -> None:
        """Learn the numbers under which the catalog knows the sets."""
        self._numbers = {names: number for number, names in numbers.items()}

    def is_stale(self, route: int) -> bool:
        """Whether a route is none of today's; paused clients' shelves are not looked at."""
        return route >= 0 and route not in self._numbers.values()

    def eligible(self, recipient: int) -> tuple[str, ...]:
        """The names of the operators for a number, given as its digits."""
        if self._lengths == [0]:
            return self._sets[""]
        digits = str(recipient)
        for length in self._lengths:
            names = self._sets.get(digits[:length])
            if names is not None:
                return names
        return NO_ROUTE

    def route(self, recipient: int) -> int:
        """The number of the route for a recipient."""
        return self._numbers[self.eligible(recipient)]
