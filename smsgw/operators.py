"""How operators are reached: the settings that all kinds share, and those of each kind."""

import re
from collections.abc import Mapping
from ipaddress import IPv6Address
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import (
    AfterValidator,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from smsgw import templates
from smsgw.fields import (
    Bytes,
    Count,
    Lax,
    Milliseconds,
    Prefix,
    RateOrOff,
    Seconds,
    SecondsOrNone,
    Secret,
    Section,
    fit_for_a_header,
)
from smsgw.presets import with_preset


class ProviderSettings(Section):
    """What the gateway needs to know of any operator; each kind adds its own."""

    AT_ONCE: ClassVar[frozenset[str]] = frozenset(
        {
            "enabled",
            "prefixes",
            "weight",
            "priority",
            "window",
            "rate_parts_per_s",
            "breaker_failures",
            "breaker_open_s",
            "receipt_token",
        }
    )
    """What can change while its connections stay."""

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

    @property
    def splits(self) -> str | None:
        """How it cuts long messages, if part by part: where two are alike, one can go on.

        None where it takes whole messages only, and cannot even go on with its own.
        """
        return ""

    @property
    def reports_parts(self) -> bool:
        """Whether each part of a long message has an id and a receipt of its own."""
        return self.splits is not None

    def connection(self) -> dict[str, object]:
        """What its connections were made by: another one needs others."""
        names = type(self).model_fields.keys() - self.AT_ONCE
        return {name: getattr(self, name) for name in names}


class MockProviderSettings(ProviderSettings):
    """The operator in the box, for trying out and for tests."""

    kind: Literal["mock"]
    window: Annotated[int, Field(ge=1, le=100_000)] = 500
    latency_ms: Milliseconds = 0
    receipt_delay_ms: Milliseconds = 0
    journal: str = ""


def _wrong(says: str) -> PydanticCustomError:
    return PydanticCustomError("operator", "{says}", {"says": says})


def _fillable(node: Any) -> Any:
    """Refuse a template with a place that nothing fills."""
    for mistake in templates.mistakes_in(node, templates.MESSAGE | templates.CREDENTIALS):
        raise _wrong(mistake)
    return node


def _flat(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Refuse what a query or a form cannot hold: a table in the table."""
    for name, value in table.items():
        values = value if isinstance(value, list) else [value]
        if any(isinstance(each, Mapping | list) for each in values):
            raise _wrong(f"{name}: should be a text or a list of texts")
    return table


def _fit_for_a_header(template: SecretStr) -> SecretStr:
    text = template.get_secret_value()
    # A text or a sender may hold a line break.
    for mistake in templates.mistakes_in(text, templates.HARMLESS | templates.CREDENTIALS):
        raise _wrong(mistake)
    if not re.fullmatch("[ -~]*", text):
        raise _wrong("Should be visible ASCII characters and spaces")
    return template


def _is_host(text: str, *, version_6: bool) -> bool:
    """Whether it can be looked up: an address of IPv6, or a name or an address of IPv4."""
    if version_6:
        try:
            return re.fullmatch("[0-9A-Fa-f:.]+", text) is not None and bool(IPv6Address(text))
        except ValueError:
            return False
    labels = text.removesuffix(".").split(".")
    return len(text) <= 253 and all(re.fullmatch("[A-Za-z0-9_-]{1,63}", each) for each in labels)


def _fit_for_an_address(url: str) -> str:
    """Refuse an address whose host is not plain to see, and that would leave it to a message."""
    found = re.fullmatch(
        r"https?://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]*)?([/?][!-~]*)?", url
    )
    if found is None or not _is_host(found[1].strip("[]"), version_6=found[1].startswith("[")):
        raise _wrong("Should begin with http:// or https:// and a host")
    port = (found[2] or "")[1:]
    if port and not (len(port) <= 5 and 1 <= int(port) <= 65_535):
        raise _wrong("Should have a port from 1 to 65535")
    return url


Verdicts = Literal["accepted", "refused", "failed", "throttled", "unknown", "trouble"]
Words = Literal["DELIVERED", "UNDELIVERED", "REJECTED", "FAILED", "EXPIRED", "ENROUTE"]
HeaderName = Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_|~-]+$")]
Header = Annotated[Secret, AfterValidator(_fit_for_a_header)]
Statuses = Annotated[str, Field(pattern="^[1-5][0-9]{2}(-[1-5][0-9]{2})?$")]
Visible = Annotated[str, Field(pattern="^[!-~]*$")]
HeaderSecret = Annotated[Secret, AfterValidator(fit_for_a_header)]
Filled = Annotated[Mapping[str, Any], AfterValidator(_fillable)]
Validity = Annotated[int, Field(ge=1, le=604_800)]
_OURS: Final = frozenset({"connection", "content-length", "host", "transfer-encoding"})


class HttpProviderSettings(ProviderSettings):
    """An operator with an HTTP interface, described by what it is sent and what it answers.

    Fields that are judged by others stand after them.
    """

    AT_ONCE = ProviderSettings.AT_ONCE | {
        "response_timeout_s",
        "preset",
        "base_url",
        "url",
        "method",
        "query",
        "headers",
        "body_format",
        "body",
        "gsm7_word",
        "ucs2_word",
        "validity_s_min",
        "validity_s_max",
        "auth",
        "key",
        "secret",
        "account",
        "statuses",
        "codes",
        "parts_path",
        "id_path",
        "code_path",
        "error_path",
        "public_url",
        "receipt_list",
        "receipt_id",
        "receipt_status",
        "receipt_reason",
        "receipt_words",
        "receipt_answer",
    }

    kind: Literal["http"]
    preset: Literal["", "twilio", "vonage", "kavenegar"] = ""
    base_url: str = ""
    url: Annotated[str, Field(validate_default=True)] = ""
    method: Literal["POST", "GET", "PUT"] = "POST"
    query: Annotated[Filled, AfterValidator(_flat)] = Field(default_factory=dict)
    headers: Mapping[HeaderName, Header] = Field(default_factory=dict)
    body_format: Literal["json", "form", "none"] = "json"
    body: Filled = Field(default_factory=dict)
    gsm7_word: str = "GSM-7"
    ucs2_word: str = "UCS-2"
    validity_s_min: Validity = 1
    validity_s_max: Validity = 604_800
    receipt_poll_url: str = ""
    auth: Literal["none", "basic", "bearer"] = "none"
    key: Annotated[HeaderSecret, Field(validate_default=True)] = SecretStr("")
    secret: Annotated[HeaderSecret, Field(validate_default=True)] = SecretStr("")
    account: Annotated[Visible, Field(validate_default=True)] = ""
    statuses: Mapping[Statuses, Verdicts] = Field(default_factory=dict)
    codes: Mapping[str, Verdicts] = Field(default_factory=dict)
    parts_path: str = ""
    id_path: str = ""
    code_path: str = ""
    error_path: str = ""
    connect_timeout_s: Seconds = 5.0
    keep_alive_s: SecondsOrNone = 15.0
    response_bytes_max: Annotated[Bytes, Field(le=16_777_216)] = 65_536
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    public_url: str = ""
    receipt_list: str = ""
    receipt_id: str = "provider_message_id"
    receipt_status: str = "status"
    receipt_reason: str = "reason"
    receipt_reference: str = ""
    receipt_to: str = ""
    receipt_from: str = ""
    receipt_words: Mapping[str, Words] = Field(default_factory=dict)
    receipt_answer: str = ""
    receipt_poll_s: SecondsOrNone = 0.0
    receipt_poll_status: Annotated[str, Field(validate_default=True)] = ""
    receipt_polls_max: Annotated[int, Field(ge=1, le=1000)] = 16

    @property
    def splits(self) -> None:
        """One request is a whole message."""
        return None

    @property
    def reports_parts(self) -> bool:
        """Where the answer has an id for each of its parts."""
        return bool(self.parts_path)

    def address(self, url: str) -> str:
        """An address, still a template, with ``base_url`` in its place."""
        return _based(url, self.base_url)

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, given: object) -> object:
        return with_preset(given) if isinstance(given, Mapping) else given

    @field_validator("base_url", "public_url")
    @classmethod
    def _an_address(cls, value: str) -> str:
        return _fit_for_an_address(value) if value else value

    @field_validator("url", "receipt_poll_url")
    @classmethod
    def _an_address_to_fill(cls, value: str, info: ValidationInfo) -> str:
        polled = info.field_name == "receipt_poll_url"
        if not value and not polled:
            raise _wrong("is needed where there is no preset")
        if not value or "base_url" not in info.data:
            return value
        if value.startswith("{base_url}") and not info.data["base_url"]:
            raise _wrong("says {base_url}, and base_url is not set")
        based = _based(value, info.data["base_url"])
        known = {"id"} if polled else templates.MESSAGE
        for mistake in templates.mistakes_in(based, templates.CREDENTIALS | known):
            raise _wrong(mistake)
        if polled and "id" not in templates.names_in(based):
            raise _wrong("should say {id}")
        _fit_for_an_address(based)
        return value

    @field_validator("headers")
    @classmethod
    def _not_ours(cls, value: Mapping[str, SecretStr]) -> Mapping[str, SecretStr]:
        for name in value:
            if name.lower() in _OURS:
                raise _wrong(f"{name}: is set by the gateway itself")
        return value

    @field_validator("body")
    @classmethod
    def _fit_for_its_format(
        cls, value: Mapping[str, Any], info: ValidationInfo
    ) -> Mapping[str, Any]:
        if value and info.data.get("body_format") == "none":
            raise _wrong("is not sent, as body_format is none")
        return _flat(value) if info.data.get("body_format") == "form" else value

    @field_validator("validity_s_max")
    @classmethod
    def _not_below_the_least(cls, value: int, info: ValidationInfo) -> int:
        if value < info.data.get("validity_s_min", 1):
            raise _wrong("should be at least validity_s_min")
        return value

    @field_validator("key", "secret", "account")
    @classmethod
    def _there_where_it_is_said(cls, value: Any, info: ValidationInfo) -> Any:
        if value:
            return value
        if info.field_name in _names_said(info.data):
            raise _wrong(f"is needed: another setting says {{{info.field_name}}}")
        auth = info.data.get("auth")
        if info.field_name == "secret" and auth in ("basic", "bearer"):
            raise _wrong(f"is needed for auth = {auth!r}")
        if info.field_name == "account" and auth == "basic" and not info.data.get("key"):
            raise _wrong("is needed for auth = 'basic', or key")
        return value

    @field_validator("public_url")
    @classmethod
    def _with_a_token(cls, value: str, info: ValidationInfo) -> str:
        token = info.data.get("receipt_token")
        if value and token is not None:
            if not re.fullmatch("[A-Za-z0-9._~-]+", token.get_secret_value()):
                raise _wrong("needs a receipt_token of letters, digits and . _ ~ - for the address")
            if "?" in value:
                raise _wrong("should have no query")
        return value

    @field_validator("receipt_poll_status")
    @classmethod
    def _there_where_it_is_polled(cls, value: str, info: ValidationInfo) -> str:
        if info.data.get("receipt_poll_s"):
            if not info.data.get("receipt_poll_url", "-"):
                raise _wrong("polling needs receipt_poll_url too")
            if not value:
                raise _wrong("is needed for polling")
        return value


def _based(url: str, base_url: str) -> str:
    if url.startswith("{base_url}"):
        return base_url.rstrip("/") + url.removeprefix("{base_url}")
    return url


def _names_said(data: Mapping[str, Any]) -> set[str]:
    """The names of all places in the templates that are right so far."""
    headers = [header.get_secret_value() for header in data.get("headers", {}).values()]
    said = [data.get(name, "") for name in ("url", "query", "body", "receipt_poll_url")]
    return templates.names_in([*said, *headers])


def _fit_for_a_bind(password: SecretStr) -> SecretStr:
    if not re.fullmatch("[!-~]{0,16}", password.get_secret_value()):
        raise _wrong("Should be up to 16 visible ASCII characters")
    return password


Octet = Annotated[int, Field(ge=0, le=255)]
StatusClasses = Literal["throttled", "temporary", "refused", "link", "link_config", "protocol"]


class SmppProviderSettings(ProviderSettings):
    """An operator that speaks SMPP 3.4.

    Fields that are judged by others stand after them.
    """

    AT_ONCE = (ProviderSettings.AT_ONCE - {"window"}) | {
        "response_timeout_s",
        "receipts",
        "link_timeout_s",
        "enquire_link_s",
        "unbind_timeout_s",
        "reconnect_min_s",
        "reconnect_max_s",
        "throttle_pause_s",
        "receipts_max",
        "receipt_id",
        "charset",
        "long_messages",
        "service_type",
        "short_code_ton",
        "short_code_npi",
        "destination_ton",
        "destination_npi",
        "transaction_mode",
        "cancel",
        "status_classes",
    }

    kind: Literal["smpp"]
    host: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]+$")]
    port: Annotated[int, Field(ge=1, le=65_535)] = 2775
    system_id: Annotated[str, Field(pattern="^[!-~]{1,15}$")]
    password: Annotated[Secret, AfterValidator(_fit_for_a_bind)] = SecretStr("")
    system_type: Annotated[str, Field(pattern="^[!-~]{0,12}$")] = ""
    bind: Literal["transceiver", "transmitter+receiver"] = "transceiver"
    binds: Annotated[int, Field(ge=1, le=100)] = 1
    tls: bool = False
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_server_name: str = ""
    link_timeout_s: Seconds = 10.0
    enquire_link_s: Seconds = 30.0
    unbind_timeout_s: Seconds = 2.0
    reconnect_min_s: Seconds = 0.5
    reconnect_max_s: Annotated[Seconds, Field(validate_default=True)] = 60.0
    throttle_pause_s: Seconds = 1.0
    receipts_max: Count = 1000
    receipt_id: Literal["same", "hex", "hex_to_decimal", "decimal_to_hex"] = "same"
    charset: Literal["gsm", "latin1"] = "gsm"
    long_messages: Literal["udh", "udh16", "sar", "payload"] = "udh"
    service_type: Annotated[str, Field(pattern="^[!-~]{0,5}$")] = ""
    short_code_ton: Octet = 3
    short_code_npi: Octet = 0
    destination_ton: Octet = 1
    destination_npi: Octet = 1
    transaction_mode: bool = False
    cancel: bool = False
    status_classes: Mapping[
        Annotated[str, Field(pattern="^0x0*[1-9a-fA-F][0-9a-fA-F]{0,7}$")], StatusClasses
    ] = Field(default_factory=dict)

    @property
    def splits(self) -> str | None:
        """The parts, and the header that tells a handset that they belong together."""
        if self.long_messages == "payload":
            return None
        return f"{self.long_messages} {self.charset}"

    @field_validator("host", "tls_server_name")
    @classmethod
    def _a_host(cls, value: str, info: ValidationInfo) -> str:
        unset = not value and info.field_name == "tls_server_name"
        if not unset and not _is_host(value, version_6=":" in value):
            raise _wrong("Should be the name of a host, or its address")
        return value

    @field_validator("tls_ca_file", "tls_cert_file", "tls_key_file", "tls_server_name")
    @classmethod
    def _with_tls(cls, value: str, info: ValidationInfo) -> str:
        if value and info.data.get("tls") is False:
            raise _wrong("has no meaning without tls = true")
        if value and info.field_name == "tls_key_file" and not info.data.get("tls_cert_file", "-"):
            raise _wrong("has no meaning without tls_cert_file")
        return value

    @field_validator("reconnect_max_s")
    @classmethod
    def _not_below_the_first(cls, value: float, info: ValidationInfo) -> float:
        if value < info.data.get("reconnect_min_s", 0):
            raise _wrong("should be at least reconnect_min_s")
        return value


AnyProviderSettings = Annotated[
    MockProviderSettings | HttpProviderSettings | SmppProviderSettings,
    Field(discriminator="kind"),
]
PROVIDER_KINDS: Final[Mapping[str, type[ProviderSettings]]] = MappingProxyType(
    {"mock": MockProviderSettings, "http": HttpProviderSettings, "smpp": SmppProviderSettings}
)
