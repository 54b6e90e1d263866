"""What settings are made of: their types, with bounds and units, and what all sections share."""

import re
from typing import Annotated, Final

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
)
from pydantic_core import PydanticCustomError

MASK: Final = "********"


def _mask(secret: SecretStr) -> str:
    return MASK if secret else ""


def fit_for_a_header(token: SecretStr) -> SecretStr:
    """Refuse a token that no HTTP header can carry."""
    if not re.fullmatch("[!-~]*", token.get_secret_value()):
        raise PydanticCustomError("token", "Should be visible ASCII characters without spaces")
    return token


def _with_plus(prefix: str) -> str:
    return f"+{prefix.removeprefix('+')}"


Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
Bytes = Annotated[int, Field(ge=1, le=2**50)]
Cents = Annotated[int, Field(ge=0, le=1_000_000)]
Milliseconds = Annotated[int, Field(ge=0, le=600_000)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
SecondsOrNone = Annotated[float, Field(ge=0, le=31_536_000)]
Days = Annotated[float, Field(gt=0, le=36_500)]
RateOrOff = Annotated[float, Field(ge=0, le=1_000_000)]

Secret = Annotated[SecretStr, PlainSerializer(_mask, return_type=str)]
Prefix = Annotated[str, Field(pattern=r"^\+?[1-9][0-9]{0,14}$"), AfterValidator(_with_plus)]
ProviderName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]

# Types are strict, but TOML knows only lists and a frozen model wants tuples.
Lax = Field(strict=False)


class Section(BaseModel):
    """What all sections share: nothing changes, nothing is guessed, no value is in an error."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        hide_input_in_errors=True,
    )
