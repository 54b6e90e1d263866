"""How operators are reached: the settings that all kinds share, and those of each kind."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SecretStr

from smsgw.fields import (
    Lax,
    Milliseconds,
    Prefix,
    RateOrOff,
    Seconds,
    Secret,
    Section,
    fit_for_a_header,
)


class ProviderSettings(Section):
    """What the gateway needs to know of any operator; each kind adds its own."""

    kind: str
    enabled: bool = True
    prefixes: Annotated[tuple[Prefix, ...], Lax] = ()
    weight: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    priority: Annotated[int, Field(ge=-1000, le=1000)] = 0
    window: Annotated[int, Field(ge=1, le=100_000)] = 10
    rate_parts_per_s: RateOrOff = 0.0
    response_timeout_s: Seconds = 30.0
    breaker_failures: Annotated[int, Field(ge=1, le=10_000)] = 5
    breaker_open_s: Seconds = 10.0
    receipts: bool = True
    receipt_token: Annotated[Secret, AfterValidator(fit_for_a_header)] = SecretStr("")


class MockProviderSettings(ProviderSettings):
    """The operator in the box, for trying out and for tests."""

    kind: Literal["mock"]
    window: Annotated[int, Field(ge=1, le=100_000)] = 500
    latency_ms: Milliseconds = 0
    receipt_delay_ms: Milliseconds = 0
    journal: str = ""


# With a second kind: Annotated[MockProviderSettings | …, Field(discriminator="kind")].
AnyProviderSettings = MockProviderSettings
PROVIDER_KINDS: Final[Mapping[str, type[ProviderSettings]]] = MappingProxyType(
    {"mock": MockProviderSettings}
)
