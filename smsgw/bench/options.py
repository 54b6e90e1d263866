"""What each benchmark can be told, with the defaults its targets are meant for.

Nothing heavy is imported here: the command line reads its defaults from this module.
"""

from dataclasses import dataclass, fields, replace
from typing import Any, Final, Self

_SCALED: Final = {"seconds": 1.0, "clients": 20, "backlog": 500, "messages": 1000}
"""What ``scaled`` makes smaller, and the least it makes of it."""


@dataclass(frozen=True)
class Options:
    """What all of them share."""

    rounds: int = 3

    def scaled(self, factor: float) -> Self:
        """The same benchmark, smaller: one round, and a share of everything that takes time."""
        smaller: dict[str, Any] = {"rounds": 1}
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in _SCALED:
                smaller[one.name] = type(value)(max(_SCALED[one.name], value * factor))
        return replace(self, **smaller)


@dataclass(frozen=True)
class Line(Options):
    """``batch`` is messages a request; 0 is the single route. ``window`` is of the mock operator.

    ``shards`` are URLs of PostgreSQL databases that hold no store, which ``gateways`` share; with
    ``beside_files`` the same load goes to one gateway with shards in files, too.
    """

    seconds: float = 8.0
    clients: int = 10_000
    connections: int = 64
    batch: int = 0
    window: int = 2_000
    shards: tuple[str, ...] = ()
    gateways: int = 1
    beside_files: bool = False


@dataclass(frozen=True)
class Smpp(Options):
    """``window`` is of all binds together; ``answer_ms`` is of the SMSC, for small windows."""

    seconds: float = 8.0
    clients: int = 10_000
    connections: int = 64
    binds: int = 2
    window: int = 500
    answer_ms: int = 20


@dataclass(frozen=True)
class Otp(Options):
    """Rates are requests a second; a batch is of 100 messages."""

    seconds: float = 20.0
    clients: int = 10_000
    backlog: int = 1_000_000
    latency_ms: int = 20
    codes_per_s: float = 100.0
    singles_per_s: float = 200.0
    batches_per_s: float = 5.0


@dataclass(frozen=True)
class Fair(Options):
    """``clients`` are the small ones; ``requests_per_s`` is what all of them send together."""

    seconds: float = 15.0
    clients: int = 200
    backlog: int = 1_000_000
    requests_per_s: float = 100.0
    parts_per_s: float = 1_000.0


@dataclass(frozen=True)
class Steady(Options):
    """``rounds`` are stretches of one run, so that nothing between them is missed."""

    seconds: float = 180.0
    clients: int = 10_000
    connections: int = 64
    rate: float = 1_157.0


@dataclass(frozen=True)
class History(Options):
    """``messages`` are what is stored already; ``warm_s`` is for load that is not measured."""

    seconds: float = 8.0
    warm_s: float = 6.0
    clients: int = 10_000
    connections: int = 64
    messages: int = 10_000_000


@dataclass(frozen=True)
class Memory(Options):
    """``seconds`` are for draining alone, and again for draining while messages come in."""

    seconds: float = 10.0
    clients: int = 10_000
    backlog: int = 1_000_000
    singles_per_s: float = 200.0
    batches_per_s: float = 5.0
