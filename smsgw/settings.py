"""Every setting: its name, type, bounds and default, and the places it may come from.

Defaults, then ``smsgw.toml``, then ``SMSGW_SECTION__KEY`` variables, then options: the later one
wins. ``smsgw.toml.example`` says what each setting is for. Names carry their unit last: ``_s`` are
seconds and take fractions, ``_ms`` milliseconds, ``_bytes`` bytes, ``_cents`` integer cents.
"""

import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_origin

from pydantic import (
    Field,
    ValidationError,
    field_validator,
)
from pydantic_core import ErrorDetails

from smsgw.errors import SettingsError
from smsgw.fields import (
    Bytes,
    Cents,
    Count,
    Days,
    Lax,
    Milliseconds,
    ProviderName,
    RateOrOff,
    Seconds,
    SecondsOrNone,
    Secret,
    Section,
)
from smsgw.operators import PROVIDER_KINDS, AnyProviderSettings, MockProviderSettings


class ServerSettings(Section):
    """The HTTP side: where it listens, and what one caller may take."""

    host: Annotated[str, Field(min_length=1)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65_535)] = 8080
    allowed_hosts: Annotated[tuple[str, ...], Lax] = ("localhost", "127.0.0.1", "[::1]")
    connections_max: Count = 2000
    header_bytes_max: Annotated[Bytes, Field(ge=256)] = 16_384
    body_bytes_max: Bytes = 65_536
    batch_body_bytes_max: Bytes = 8_388_608
    header_timeout_s: Seconds = 5.0
    body_timeout_s: Seconds = 10.0
    idle_timeout_s: Seconds = 60.0
    shutdown_s: SecondsOrNone = 20.0


class StoreSettings(Section):
    """The shards and the room they may take."""

    shards: Annotated[int, Field(ge=1, le=256)] = 4
    shard_urls: Annotated[tuple[Secret, ...], Lax] = ()
    readers: Annotated[int, Field(ge=1, le=64)] = 2
    waiting_items_max: Count = 10_000
    wal_bytes_max: Annotated[Bytes, Field(ge=65_536)] = 67_108_864
    free_bytes_min: Annotated[int, Field(ge=0, le=2**50)] = 268_435_456


class PostgresSettings(Section):
    """How shards in PostgreSQL are reached."""

    statement_cache: bool = True
    pool_max: Annotated[int, Field(ge=1, le=1000)] = 8
    lease_s: Seconds = 30.0
    poll_ms: Annotated[Milliseconds, Field(ge=1)] = 100


class LimitsSettings(Section):
    """What a message, a batch and a client may be at most, and what is taken at all."""

    parts_max: Annotated[int, Field(ge=1, le=255)] = 10
    validity_s: Annotated[float, Field(gt=0, le=604_800)] = 259_200.0
    batch_messages_max: Annotated[int, Field(ge=1, le=100_000)] = 1000
    idempotency_s: Seconds = 259_200.0
    backlog_max: Count = 20_000_000
    backlog_client_max: Count = 5_000_000
    client_rate_per_s: RateOrOff = 0.0
    unrouted: Literal["wait", "refuse"] = "wait"


class BillingSettings(Section):
    """What a part costs, and when it is paid."""

    part_cents: Cents = 5
    express_part_cents: Cents = 2
    otp_part_cents: Cents = 5
    capture_on: Literal["delivered", "sent"] = "delivered"


class DeliverySettings(Section):
    """Tries, and what is done when nobody knows what happened."""

    attempts_max: Annotated[int, Field(ge=1, le=100)] = 3
    express_attempts_max: Annotated[int, Field(ge=1, le=100)] = 5
    retry_base_s: SecondsOrNone = 30.0
    retry_max_s: SecondsOrNone = 3600.0
    on_uncertain: Literal["wait", "resend", "fail"] = "wait"
    uncertain_s: Seconds = 600.0
    receipt_timeout_s: Seconds = 259_200.0
    receipt_parked_s: Seconds = 259_200.0
    regular_share: Annotated[float, Field(gt=0, lt=1)] = 0.2


class ExpressSettings(Section):
    """The time that the express lane promises."""

    guarantee_s: Seconds = 60.0


class OtpSettings(Section):
    """One-time codes: their deadline, their shape, and what one number may be sent."""

    deadline_ms: Annotated[int, Field(ge=1, le=60_000)] = 5000
    confirm: Literal["operator", "handset"] = "operator"
    digits: Annotated[int, Field(ge=4, le=10)] = 6
    valid_s: Seconds = 300.0
    tries_max: Annotated[int, Field(ge=1, le=100)] = 5
    window_share: Annotated[float, Field(ge=0, lt=1)] = 0.1
    number_interval_s: SecondsOrNone = 30.0
    number_window_s: SecondsOrNone = 600.0
    number_window_max: Annotated[int, Field(ge=0, le=1_000_000)] = 5


class NumbersSettings(Section):
    """How numbers that are not E.164 are read."""

    default_region: Annotated[str, Field(pattern="^([A-Z]{2})?$")] = ""


class DevSettings(Section):
    """What ``serve --dev`` may touch."""

    allow_providers: bool = False


class RetentionSettings(Section):
    """How long what is finished is kept."""

    messages_days: Days = 30.0
    texts_days: Days = 7.0


class LogSettings(Section):
    """What is written to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class Settings(Section):
    """All settings of one gateway."""

    server: ServerSettings = ServerSettings()
    store: StoreSettings = StoreSettings()
    postgres: PostgresSettings = PostgresSettings()
    limits: LimitsSettings = LimitsSettings()
    billing: BillingSettings = BillingSettings()
    delivery: DeliverySettings = DeliverySettings()
    express: ExpressSettings = ExpressSettings()
    otp: OtpSettings = OtpSettings()
    numbers: NumbersSettings = NumbersSettings()
    providers: Mapping[ProviderName, AnyProviderSettings] = Field(default_factory=dict)
    dev: DevSettings = DevSettings()
    retention: RetentionSettings = RetentionSettings()
    log: LogSettings = LogSettings()

    @field_validator("providers", mode="before")
    @classmethod
    def _mock_needs_no_kind(cls, value: object) -> object:
        if isinstance(value, dict) and isinstance(mock := value.get("mock"), dict):
            return {**value, "mock": {"kind": "mock", **mock}}
        return value


_OTP_OFF_IN_DEV: Final = MappingProxyType(
    {"number_interval_s": 0.0, "number_window_s": 0.0, "number_window_max": 0}
)


def with_dev(settings: Settings) -> Settings:
    """The settings of ``serve --dev``: a mock operator, and no limits on OTP to one number.

    What was set explicitly stays as it was set.

    Raises:
        SettingsError: a real operator is enabled without ``dev.allow_providers``.
    """
    real = [
        name
        for name, provider in settings.providers.items()
        if provider.enabled and provider.kind != "mock"
    ]
    if real and not settings.dev.allow_providers:
        raise _error(
            [f"dev.allow_providers: must be true to use real operators in --dev: {', '.join(real)}"]
        )
    explicit = settings.otp.model_fields_set
    off = {key: value for key, value in _OTP_OFF_IN_DEV.items() if key not in explicit}
    return settings.model_copy(
        update={
            "otp": settings.otp.model_copy(update=off),
            "providers": {"mock": MockProviderSettings(kind="mock"), **settings.providers},
        }
    )


def masked(settings: Settings) -> dict[str, Any]:
    """The settings as plain JSON values, with ``********`` for each secret that is set."""
    return settings.model_dump(mode="json")


def differences(before: Settings, after: Settings) -> list[str]:
    """The keys of what is not the same in two sets of settings, such as ``server.port``."""
    return [
        f"{section}.{key}"
        for section in Settings.model_fields
        for one, other in [(dict(getattr(before, section)), dict(getattr(after, section)))]
        for key in sorted(one | other)
        if key not in one or key not in other or one[key] != other[key]
    ]


def load(
    path: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Mapping[str, object]] = MappingProxyType({}),
) -> Settings:
    """Gather the settings from everywhere.

    Args:
        path: a TOML file that must exist, or None for no file.
        environ: variables. ``SMSGW_SECTION__KEY`` is the value, ``SMSGW_SECTION__KEY_FILE`` names
            a file that holds it. Lists are separated by commas. A provider's name is in capitals,
            with ``_`` also where the name has ``-``.
        overrides: options as section and key; a value of None is an option not given.

    Raises:
        SettingsError: with every mistake, each with its key and where it came from, in the member
            ``mistakes``. No value is repeated there: it may be a secret.
    """
    layers = _Layers()
    if path is not None:
        layers.add_table(_read_toml(path), str(path))
    layers.add_environment(environ)
    layers.add_table(overrides, "option")
    return layers.validated()


_Keys = tuple[str, ...]
_PREFIX: Final = "SMSGW_"
_PLAIN_WORDS: Final = {
    "extra_forbidden": "unknown setting",
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a table",
    "model_type": "Input should be a table",
    "model_attributes_type": "Input should be a table",
    "union_tag_not_found": "Field required",
    # The sentence of pydantic would repeat the value.
    "union_tag_invalid": "Input should be "
    + " or ".join(", ".join(map(repr, PROVIDER_KINDS)).rsplit(", ", 1)),
}
_OF_THE_KIND: Final = frozenset({"union_tag_not_found", "union_tag_invalid"})


def _error(mistakes: list[str]) -> SettingsError:
    return SettingsError("; ".join(mistakes), mistakes=mistakes)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except OSError as error:
        raise _error([f"{path}: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise _error([f"{path}: is not UTF-8"]) from error
    except ValueError as error:
        # The parser gives no line when the file ends too early.
        last_line = f"at line {text.count(chr(10)) + 1}, the end of the file"
        what = str(error).replace("at end of document", last_line)
        raise _error([f"{path}: {what}"]) from error


class _Layers:
    """What all layers say, the later one over the earlier, and which of them said it."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._sources: dict[tuple[str, ...], str] = {}
        self._mistakes: list[str] = []

    def add_table(self, table: Mapping[str, object], source: str, above: _Keys = ()) -> None:
        """Lay a table over what is there, key by key."""
        for key, value in table.items():
            keys = (*above, key)
            if isinstance(value, Mapping):
                self._put(keys, {}, source)
                self.add_table(value, source, keys)
            elif value is not None:
                self._put(keys, value, source)

    def add_environment(self, environ: Mapping[str, str]) -> None:
        """Lay the variables over what is there, and keep the mistakes for later."""
        variable_of: dict[_Keys, str] = {}
        for variable in filter(_is_a_setting, sorted(environ)):
            try:
                keys, value = self._read_variable(variable, environ[variable])
            except SettingsError as error:
                self._mistakes.append(error.detail)
                continue
            if keys in variable_of:
                self._mistakes.append(
                    f"{'.'.join(keys)}: set twice (from {variable_of[keys]} and {variable})"
                )
            variable_of[keys] = variable
            self._put(keys, value, variable)

    def validated(self) -> Settings:
        """Return the settings, or raise every mistake at once."""
        try:
            settings = Settings.model_validate(self._values)
        except ValidationError as error:
            details = error.errors(include_url=False, include_input=False, include_context=False)
            self._mistakes += [self._mistake(detail) for detail in details]
        if self._mistakes:
            raise _error(self._mistakes)
        return settings

    def _put(self, keys: _Keys, value: object, source: str) -> None:
        table = self._values
        for key in keys[:-1]:
            table = table.setdefault(key, {})
            if not isinstance(table, dict):
                # Something stands where a table belongs; validation will say so.
                return
        if value == {}:
            table.setdefault(keys[-1], {})
            self._sources.setdefault(keys, source)
        else:
            table[keys[-1]] = value
            self._sources[keys] = source

    def _read_variable(self, variable: str, text: str) -> tuple[_Keys, object]:
        section, _, rest = variable.removeprefix(_PREFIX).lower().partition("__")
        keys: _Keys = (section, rest)
        if section == "providers":
            name, _, key = rest.rpartition("__")
            keys = (section, self._provider_name(name, variable), key)
        if not all(keys):
            pattern = "PROVIDERS__NAME" if section == "providers" else "SECTION"
            raise SettingsError(f"{variable}: not a setting; those are named SMSGW_{pattern}__KEY")
        annotation = _annotation_of(keys)
        if annotation is None and rest.endswith("_file"):
            in_file = (*keys[:-1], keys[-1].removesuffix("_file"))
            annotation = _annotation_of(in_file)
            if annotation is not None:
                keys, text = in_file, _read_file(text, ".".join(in_file), variable)
        return keys, _parsed(text, annotation)

    def _provider_name(self, spelled: str, variable: str) -> str:
        """Return the one configured name with that spelling, else the spelling itself."""
        configured = self._values.get("providers")
        if not isinstance(configured, dict):
            return spelled
        names = [name for name in configured if _spelling(name) == _spelling(spelled)]
        if len(names) > 1:
            raise SettingsError(f"{variable}: may mean {' or '.join(names)}; rename one of them")
        return names[0] if names else spelled

    def _mistake(self, detail: ErrorDetails) -> str:
        keys = [str(key) for key in detail["loc"] if key != "[key]"]
        if len(keys) > 2 and keys[0] == "providers":
            # The kind chosen from the union stands between the name and the key.
            del keys[2]
        if detail["type"] in _OF_THE_KIND:
            keys.append("kind")
        sentence = _PLAIN_WORDS.get(detail["type"], detail["msg"])
        return f"{'.'.join(keys)}: {sentence} (from {self._source_of(tuple(keys))})"

    def _source_of(self, keys: _Keys) -> str:
        """Return who said this, or else what stands nearest above or below it."""
        for length in range(len(keys), 0, -1):
            for known, source in self._sources.items():
                if known[:length] == keys[:length]:
                    return source
        return "the defaults"


def _is_a_setting(variable: str) -> bool:
    return (
        variable.startswith(_PREFIX)
        and variable not in ("SMSGW_CONFIG", "SMSGW_DATA")
        and not variable.startswith(("SMSGW_TEST_", "SMSGW_BENCH_"))
    )


def _spelling(provider_name: str) -> str:
    return provider_name.lower().replace("-", "_")


def _annotation_of(keys: _Keys) -> Any:
    """Return the type of a setting, or None if there is no such setting."""
    section, *_, key = keys
    if section == "providers":
        models = list(PROVIDER_KINDS.values())
    elif section in Settings.model_fields:
        models = [type(Settings.model_fields[section].default)]
    else:
        models = []
    for model in models:
        if key in model.model_fields:
            return model.model_fields[key].annotation
    return None


def _read_file(path: str, key: str, variable: str) -> str:
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{key}: {path}: {error.strerror} (from {variable})") from error
    except UnicodeDecodeError:
        raise SettingsError(f"{key}: {path}: is not UTF-8 (from {variable})") from None
    return text.removesuffix("\n").removesuffix("\r")


def _parsed(text: str, annotation: Any) -> object:
    """Read text as the type that the setting has; text that does not fit stays, to be refused."""
    if get_origin(annotation) is tuple:
        return [item for part in text.split(",") if (item := part.strip())]
    return _PARSERS[annotation](text.strip()) if annotation in _PARSERS else text


def _parsed_int(text: str) -> int | str:
    return int(text) if re.fullmatch("[+-]?[0-9]{1,18}", text) else text


def _parsed_float(text: str) -> float | str:
    return float(text) if re.fullmatch(r"[+-]?[0-9]*\.?[0-9]+", text) else text


def _parsed_bool(text: str) -> bool | str:
    return _BOOLEANS.get(text.lower(), text)


_BOOLEANS: Final = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_PARSERS: Final[Mapping[Any, Callable[[str], object]]] = {
    int: _parsed_int,
    float: _parsed_float,
    bool: _parsed_bool,
}
