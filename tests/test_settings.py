import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from smsgw.errors import SettingsError
from smsgw.fields import MASK, Section
from smsgw.operators import PROVIDER_KINDS, MockProviderSettings, ProviderSettings
from smsgw.settings import Settings, load, masked, with_dev

EXAMPLE = Path(__file__).parents[1] / "smsgw.toml.example"
SETTING = re.compile(r"#(?=[a-z\[])")
CANARY = "canary-4f1d"

SECTIONS: dict[str, type[Section]] = {
    name: type(field.default)
    for name, field in Settings.model_fields.items()
    if name != "providers"
} | {f"providers.{kind}": model for kind, model in PROVIDER_KINDS.items()}
NEEDED = {
    "mock": {},
    "http": {"kind": "http", "url": "https://sms.example.com/send"},
    "smpp": {"kind": "smpp", "host": "smsc.example.com", "system_id": "smsgw"},
}
"""What an operator of a kind cannot do without."""
NUMERIC = [
    f"{section}.{key}"
    for section, model in SECTIONS.items()
    for key, field in model.model_fields.items()
    if field.annotation in (int, float)
]


def uncommented() -> dict[str, Any]:
    lines = EXAMPLE.read_text().splitlines()
    return tomllib.loads("\n".join(SETTING.sub("", line, count=1) for line in lines))


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "smsgw.toml"
    path.write_text(text)
    return path


def mistakes_of(
    path: Path | None, environ: dict[str, str] | None = None, **overrides: dict[str, object]
) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(path, environ or {}, overrides)
    mistakes = caught.value.members["mistakes"]
    assert isinstance(mistakes, list)
    assert caught.value.detail == "; ".join(mistakes)
    return mistakes


def variable_for(key: str) -> str:
    return "SMSGW_" + key.upper().replace(".", "__")


def with_needed(key: str, text: str) -> dict[str, str]:
    """Variables that set a key, and what its section cannot do without."""
    section, _, name = key.rpartition(".")
    needed = NEEDED.get(section.removeprefix("providers."), {})
    return {variable_for(f"{section}.{other}"): needed[other] for other in needed} | {
        variable_for(f"{section}.{name}"): text
    }


# The example


def test_the_example_as_shipped_changes_nothing() -> None:
    assert load(EXAMPLE, {}) == Settings()


def test_the_example_names_every_setting_and_no_other() -> None:
    example = uncommented()
    assert set(example) == set(Settings.model_fields)
    assert set(example["providers"]) == set(PROVIDER_KINDS)
    for section, model in SECTIONS.items():
        table = example
        for part in section.split("."):
            table = table[part]
        # What all operators have in common is told once.
        told = set(ProviderSettings.model_fields) - {"kind"}
        known = told if section.startswith("providers.") and section != "providers.mock" else set()
        assert set(table) == set(model.model_fields) - known, section


def test_the_example_shows_the_defaults() -> None:
    example = uncommented()
    defaults = masked(load(None, {}, {"providers": NEEDED}))
    for kind, table in example.pop("providers").items():
        shown = defaults["providers"][kind]
        assert table == {key: shown[key] for key in table}, kind
    del defaults["providers"]
    assert example == defaults


def test_the_example_explains_each_setting_in_one_line_before_it() -> None:
    lines = ["", *EXAMPLE.read_text().splitlines()]
    settings = [at for at, line in enumerate(lines) if re.match("#[a-z]", line)]
    assert len(settings) > 60
    for at in settings:
        assert lines[at - 1].startswith("# "), lines[at]
        assert not lines[at - 2].startswith("# ") or "[" in lines[at - 1], lines[at]
        assert len(lines[at - 1]) <= 100, lines[at - 1]


# Where settings come from


def test_without_any_source_the_defaults_hold_and_there_is_no_operator() -> None:
    settings = load(None, {})
    assert settings == Settings()
    assert settings.server.host == "127.0.0.1"
    assert settings.providers == {}


def test_a_later_source_wins_over_an_earlier_one(tmp_path: Path) -> None:
    path = written(tmp_path, "[server]\nport = 1\nheader_bytes_max = 1111\nbody_bytes_max = 11\n")
    environ = {"SMSGW_SERVER__PORT": "2", "SMSGW_SERVER__BODY_BYTES_MAX": "22"}
    server = load(path, environ, {"server": {"port": 3}}).server
    assert (server.port, server.body_bytes_max, server.header_bytes_max) == (3, 22, 1111)
    assert server.connections_max == 2000


def test_an_option_that_was_not_given_changes_nothing() -> None:
    environ = {"SMSGW_SERVER__PORT": "2"}
    assert load(None, environ, {"server": {"port": None}}).server.port == 2


def test_an_empty_table_clears_nothing() -> None:
    environ = {"SMSGW_PROVIDERS__MOCK__WINDOW": "7"}
    overrides: dict[str, dict[str, object]] = {"server": {}, "providers": {"mock": {}}}
    assert load(None, environ, overrides).providers["mock"].window == 7


@pytest.mark.parametrize(
    ("variable", "text", "section", "key", "value"),
    [
        ("SMSGW_SERVER__PORT", "0", "server", "port", 0),
        ("SMSGW_SERVER__PORT", " 80 ", "server", "port", 80),
        ("SMSGW_DELIVERY__RETRY_BASE_S", "0.25", "delivery", "retry_base_s", 0.25),
        ("SMSGW_DELIVERY__RETRY_BASE_S", ".5", "delivery", "retry_base_s", 0.5),
        ("SMSGW_DELIVERY__RETRY_BASE_S", "3", "delivery", "retry_base_s", 3.0),
        ("SMSGW_DEV__ALLOW_PROVIDERS", "true", "dev", "allow_providers", True),
        ("SMSGW_DEV__ALLOW_PROVIDERS", "YES", "dev", "allow_providers", True),
        ("SMSGW_DEV__ALLOW_PROVIDERS", "1", "dev", "allow_providers", True),
        ("SMSGW_POSTGRES__STATEMENT_CACHE", "false", "postgres", "statement_cache", False),
        ("SMSGW_POSTGRES__STATEMENT_CACHE", "No", "postgres", "statement_cache", False),
        ("SMSGW_POSTGRES__STATEMENT_CACHE", "0", "postgres", "statement_cache", False),
        ("SMSGW_SERVER__ALLOWED_HOSTS", "a, [::1],", "server", "allowed_hosts", ("a", "[::1]")),
        ("SMSGW_SERVER__ALLOWED_HOSTS", "", "server", "allowed_hosts", ()),
        ("SMSGW_SERVER__HOST", "0", "server", "host", "0"),
        ("SMSGW_NUMBERS__DEFAULT_REGION", "", "numbers", "default_region", ""),
        ("SMSGW_OTP__CONFIRM", "handset", "otp", "confirm", "handset"),
    ],
)
def test_text_in_a_variable_is_read_by_the_type_of_the_setting(
    variable: str, text: str, section: str, key: str, value: object
) -> None:
    found = getattr(getattr(load(None, {variable: text}), section), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("SMSGW_SERVER__PORT", ""),
        ("SMSGW_SERVER__PORT", "80.0"),
        ("SMSGW_SERVER__PORT", "8_0"),
        ("SMSGW_SERVER__PORT", "٨٠"),
        ("SMSGW_SERVER__PORT", "9" * 5000),
        ("SMSGW_DELIVERY__RETRY_BASE_S", "30s"),
        ("SMSGW_DELIVERY__RETRY_BASE_S", "nan"),
        ("SMSGW_DELIVERY__RETRY_BASE_S", "9" * 400),
        ("SMSGW_DEV__ALLOW_PROVIDERS", "on"),
        ("SMSGW_DEV__ALLOW_PROVIDERS", ""),
        ("SMSGW_OTP__CONFIRM", "Operator"),
    ],
)
def test_text_that_does_not_fit_the_type_is_refused(variable: str, text: str) -> None:
    (mistake,) = mistakes_of(None, {variable: text})
    section, key = variable.removeprefix("SMSGW_").lower().split("__")
    assert mistake.startswith(f"{section}.{key}: Input should be ")
    assert mistake.endswith(f" (from {variable})")


def test_a_text_setting_is_taken_as_it_is() -> None:
    environ = {"SMSGW_PROVIDERS__MOCK__JOURNAL": " 12,true "}
    mock = load(None, environ).providers["mock"]
    assert mock.journal == " 12,true "


def test_variables_that_are_no_settings_are_left_alone() -> None:
    environ = {
        "SMSGW_CONFIG": "x",
        "SMSGW_DATA": "x",
        "SMSGW_TEST_X__Y": "x",
        "SMSGW_BENCH_SECONDS": "x",
        "PATH": "x",
        "SMSGWX": "x",
    }
    assert load(None, environ) == Settings()


@pytest.mark.parametrize(
    "variable",
    [
        "SMSGW_FOO",
        "SMSGW_SERVER__PROT",
        "SMSGW_SEVER__PORT",
        "SMSGW_SERVER__PORT__X",
        "SMSGW_SERVER__",
        "SMSGW___PORT",
        "SMSGW_PROVIDERS__MOCK",
        "SMSGW_PROVIDERS__MOCK__WINDOWS",
        "SMSGW_PROVIDERS__WINDOW",
        "SMSGW_SERVER__PROT_FILE",
        "SMSGW_CONFIG_FILE",
    ],
)
def test_an_unknown_variable_is_named(variable: str) -> None:
    (mistake,) = mistakes_of(None, {variable: "1"})
    assert variable in mistake


def test_a_variable_may_name_a_file_that_holds_the_value(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret\n")
    (tmp_path / "urls").write_text("postgresql://a,postgresql://b\r\n")
    environ = {
        "SMSGW_PROVIDERS__MOCK__RECEIPT_TOKEN_FILE": str(tmp_path / "token"),
        "SMSGW_STORE__SHARD_URLS_FILE": str(tmp_path / "urls"),
    }
    settings = load(None, environ)
    assert settings.providers["mock"].receipt_token.get_secret_value() == "s3cret"
    urls = [url.get_secret_value() for url in settings.store.shard_urls]
    assert urls == ["postgresql://a", "postgresql://b"]


def test_only_one_newline_is_no_part_of_the_value_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text(" x \n\n")
    environ = {"SMSGW_PROVIDERS__MOCK__JOURNAL_FILE": str(tmp_path / "journal")}
    assert load(None, environ).providers["mock"].journal == " x \n"


def test_a_file_that_cannot_be_read_is_named_with_its_key_and_variable(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff")
    variable = "SMSGW_PROVIDERS__MOCK__RECEIPT_TOKEN_FILE"
    for name, why in [("none", "No such file or directory"), ("binary", "is not UTF-8")]:
        path = tmp_path / name
        (mistake,) = mistakes_of(None, {variable: str(path)})
        assert mistake == f"providers.mock.receipt_token: {path}: {why} (from {variable})"


def test_a_setting_given_twice_in_the_environment_is_refused(tmp_path: Path) -> None:
    (tmp_path / "port").write_text("81")
    environ = {"SMSGW_SERVER__PORT": "80", "SMSGW_SERVER__PORT_FILE": str(tmp_path / "port")}
    (mistake,) = mistakes_of(None, environ)
    both = "SMSGW_SERVER__PORT and SMSGW_SERVER__PORT_FILE"
    assert mistake == f"server.port: set twice (from {both})"


# Mistakes


def test_every_mistake_is_told_at_once_with_its_key_and_source(tmp_path: Path) -> None:
    path = written(tmp_path, "[otp]\nconfirm = 'phone'\ncolour = 1\n[shop]\nx = 1\n")
    environ = {"SMSGW_SERVER__PORT": "99999", "SMSGW_FOO": "1"}
    assert set(mistakes_of(path, environ, log={"level": "loud"})) == {
        f"otp.confirm: Input should be 'operator' or 'handset' (from {path})",
        f"otp.colour: unknown setting (from {path})",
        f"shop: unknown setting (from {path})",
        "server.port: Input should be less than or equal to 65535 (from SMSGW_SERVER__PORT)",
        "SMSGW_FOO: not a setting; those are named SMSGW_SECTION__KEY",
        "log.level: Input should be 'debug', 'info', 'warning' or 'error' (from option)",
    }


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("[server]\nport = '80'", "server.port: Input should be a valid integer"),
        ("[server]\nport = 80.0", "server.port: Input should be a valid integer"),
        ("[server]\nport = true", "server.port: Input should be a valid integer"),
        (
            "[server]\nidle_timeout_s = true",
            "server.idle_timeout_s: Input should be a valid number",
        ),
        ("[dev]\nallow_providers = 1", "dev.allow_providers: Input should be a valid boolean"),
        ("[server]\nallowed_hosts = 'a'", "server.allowed_hosts: Input should be a list"),
        ("[server]\nallowed_hosts = [1]", "server.allowed_hosts.0: Input should be a valid string"),
        ("server = 1", "server: Input should be a table"),
        ("[[server]]\nport = 1", "server: Input should be a table"),
        ("providers = 1", "providers: Input should be a table"),
        ("[providers]\nmock = 1", "providers.mock: Input should be a table"),
        ("[express]\nguarantee_s = nan", "express.guarantee_s: Input should be a finite number"),
        ("[log]\nlevel = 2026-11-23", "log.level: Input should be 'debug', "),
    ],
)
def test_types_in_the_file_are_strict(tmp_path: Path, text: str, mistake: str) -> None:
    path = written(tmp_path, text)
    (found,) = mistakes_of(path)
    assert found.startswith(mistake)
    assert found.endswith(f"(from {path})")


def test_a_variable_below_something_that_is_no_table_does_not_hide_that(tmp_path: Path) -> None:
    path = written(tmp_path, "server = 1\nproviders = 2")
    environ = {"SMSGW_SERVER__PORT": "80", "SMSGW_PROVIDERS__MOCK__WINDOW": "1"}
    assert mistakes_of(path, environ) == [
        f"server: Input should be a table (from {path})",
        f"providers: Input should be a table (from {path})",
    ]


@pytest.mark.parametrize("key", NUMERIC)
def test_no_number_is_without_bounds(key: str) -> None:
    below = "-1001" if key.endswith("priority") else "-1"
    for text in (below, "9" * 18):
        (mistake,) = mistakes_of(None, with_needed(key, text))
        assert mistake.startswith(f"{key}: Input should be ")


@pytest.mark.parametrize(
    "key",
    [
        "limits.client_rate_per_s",
        "otp.number_interval_s",
        "otp.number_window_max",
        "otp.number_window_s",
        "providers.mock.rate_parts_per_s",
        "server.port",
    ],
)
def test_what_can_be_off_takes_zero(key: str) -> None:
    load(None, {variable_for(key): "0"})


@pytest.mark.parametrize("key", ["otp.window_share", "delivery.regular_share"])
def test_a_share_is_never_everything(key: str) -> None:
    load(None, {variable_for(key): "0.99"})
    assert len(mistakes_of(None, {variable_for(key): "1"})) == 1


@pytest.mark.parametrize("region", ["ir", "IRN", "I", "98", "IR\n"])
def test_a_region_is_two_capital_letters(region: str) -> None:
    assert len(mistakes_of(None, numbers={"default_region": region})) == 1
    assert load(None, {}, {"numbers": {"default_region": "IR"}}).numbers.default_region == "IR"


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.toml"
    assert mistakes_of(path) == [f"{path}: No such file or directory"]
    assert mistakes_of(tmp_path) == [f"{tmp_path}: Is a directory"]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (b"[server]\nport = eighty\n", "(at line 2, column 8)"),
        (b"[server]\nport = 80\nallowed_hosts = [", "(at line 3, the end of the file)"),
        (b"port = 1\nport = 2\n", "(at line 2, column "),
        (b"x = '\xff'", "is not UTF-8"),
    ],
)
def test_a_malformed_file_is_named_with_the_line(tmp_path: Path, text: bytes, line: str) -> None:
    path = tmp_path / "smsgw.toml"
    path.write_bytes(text)
    (mistake,) = mistakes_of(path)
    assert mistake.startswith(f"{path}: ")
    assert line in mistake


@given(text=st.text(max_size=40), key=st.sampled_from(NUMERIC))
def test_no_text_in_a_variable_escapes_as_another_error(text: str, key: str) -> None:
    try:
        load(None, with_needed(key, text))
    except SettingsError as error:
        (mistake,) = error.members["mistakes"]
        assert mistake.startswith(f"{key}: ")


# Operators


def test_the_mock_needs_no_kind_and_has_a_wide_window() -> None:
    settings = load(None, {"SMSGW_PROVIDERS__MOCK__JOURNAL": "/x"})
    assert settings.providers == {"mock": MockProviderSettings(kind="mock", journal="/x")}
    assert settings.providers["mock"].window == 500
    assert ProviderSettings(kind="other").window == 10


def test_an_operator_of_another_name_needs_a_kind(tmp_path: Path) -> None:
    path = written(tmp_path, "[providers.mci]\nwindow = 3\n[providers.irancell]\n")
    assert mistakes_of(path) == [
        f"providers.mci.kind: Field required (from {path})",
        f"providers.irancell.kind: Field required (from {path})",
    ]
    environ = {
        "SMSGW_PROVIDERS__MCI__KIND": "mock",
        "SMSGW_PROVIDERS__IRANCELL__KIND": "mock",
    }
    assert load(path, environ).providers["mci"].window == 3


def test_an_unknown_kind_is_refused() -> None:
    (mistake,) = mistakes_of(None, {"SMSGW_PROVIDERS__MCI__KIND": "pigeon"})
    assert mistake.startswith("providers.mci.kind: Input should be 'mock', ")
    assert mistake.endswith(" (from SMSGW_PROVIDERS__MCI__KIND)")
    assert "pigeon" not in mistake


@pytest.mark.parametrize("name", ["MCI", "-a", "_a", "a b", "", "a" * 33, "a.b", "é"])
def test_a_bad_name_is_refused(name: str) -> None:
    mistakes = mistakes_of(None, providers={name: {"kind": "mock"}})
    assert len(mistakes) == 1
    assert mistakes[0].startswith(f"providers.{name}: String should match pattern")


@pytest.mark.parametrize("name", ["a", "9", "my-operator", "my_operator", "a__b", "a" * 32])
def test_a_variable_finds_the_operator_of_that_name(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, f"[providers.{name}]\nkind = 'mock'\n")
    spelled = name.upper().replace("-", "_")
    providers = load(path, {f"SMSGW_PROVIDERS__{spelled}__WINDOW": "3"}).providers
    assert {name: provider.window for name, provider in providers.items()} == {name: 3}


def test_a_variable_alone_makes_an_operator_in_small_letters() -> None:
    providers = load(None, {"SMSGW_PROVIDERS__MY_OPERATOR__KIND": "mock"}).providers
    assert list(providers) == ["my_operator"]


def test_a_variable_that_may_mean_two_operators_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "[providers]\na-b.kind = 'mock'\na_b.kind = 'mock'\n")
    variable = "SMSGW_PROVIDERS__A_B__WINDOW"
    (mistake,) = mistakes_of(path, {variable: "3"})
    assert mistake == f"{variable}: may mean a-b or a_b; rename one of them"


def test_a_prefix_has_a_plus_whether_written_or_not() -> None:
    environ = {"SMSGW_PROVIDERS__MOCK__PREFIXES": "98912,+1"}
    assert load(None, environ).providers["mock"].prefixes == ("+98912", "+1")
    (mistake,) = mistakes_of(None, {"SMSGW_PROVIDERS__MOCK__PREFIXES": "+98,0098"})
    assert mistake.startswith("providers.mock.prefixes.1: ")


@pytest.mark.parametrize("token", ["a b", "a\n", "é", "\x00"])
def test_a_receipt_token_fits_in_a_header(token: str) -> None:
    (mistake,) = mistakes_of(None, providers={"mock": {"receipt_token": token}})
    assert mistake == (
        "providers.mock.receipt_token: "
        "Should be visible ASCII characters without spaces (from option)"
    )


# --dev


def test_dev_adds_the_mock_and_lifts_the_limits_of_a_number() -> None:
    settings = with_dev(load(None, {}))
    assert settings.providers == {"mock": MockProviderSettings(kind="mock")}
    otp = settings.otp
    assert (otp.number_interval_s, otp.number_window_s, otp.number_window_max) == (0, 0, 0)
    assert otp.digits == 6
    assert with_dev(settings) == settings


def test_dev_keeps_what_was_set_explicitly(tmp_path: Path) -> None:
    path = written(tmp_path, "[otp]\nnumber_window_max = 5\n[providers.mock]\nlatency_ms = 9\n")
    settings = with_dev(load(path, {"SMSGW_OTP__NUMBER_INTERVAL_S": "30"}))
    otp = settings.otp
    assert (otp.number_interval_s, otp.number_window_s, otp.number_window_max) == (30, 0, 5)
    assert settings.providers == {"mock": MockProviderSettings(kind="mock", latency_ms=9)}


def real_operator(*, enabled: bool = True, **dev: object) -> Settings:
    settings = load(None, {}, {"dev": dev})
    real = ProviderSettings(kind="smpp", enabled=enabled)
    return settings.model_copy(update={"providers": {"mci": real}})


def test_dev_refuses_real_operators_unless_allowed() -> None:
    with pytest.raises(SettingsError, match=r"^dev\.allow_providers: .*: mci$") as caught:
        with_dev(real_operator())
    assert caught.value.members["mistakes"] == [caught.value.detail]
    assert set(with_dev(real_operator(allow_providers=True)).providers) == {"mock", "mci"}
    assert set(with_dev(real_operator(enabled=False)).providers) == {"mock", "mci"}


# What never changes, and what is never shown


def test_settings_do_not_change() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.server.port = 1
    with pytest.raises(ValidationError):
        settings.server = settings.server


def settings_with_secrets() -> Settings:
    environ = {
        "SMSGW_PROVIDERS__MOCK__RECEIPT_TOKEN": CANARY,
        "SMSGW_STORE__SHARD_URLS": f"postgresql://u:{CANARY}@h/a,postgresql://u:{CANARY}@h/b",
    }
    return load(None, environ)


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    settings = settings_with_secrets()
    shown = masked(settings)
    assert shown["providers"]["mock"]["receipt_token"] == MASK
    assert shown["store"]["shard_urls"] == [MASK, MASK]
    mock = settings.providers["mock"]
    for text in (
        str(shown),
        repr(settings),
        f"{settings} {mock} {mock.receipt_token} {settings.store.shard_urls}",
        settings.model_dump_json(),
        str(settings.model_dump()),
        repr(with_dev(settings)),
    ):
        assert CANARY not in text


def test_a_secret_that_is_not_set_is_shown_as_empty() -> None:
    shown = masked(with_dev(Settings()))
    assert shown["providers"]["mock"]["receipt_token"] == ""
    assert shown["store"]["shard_urls"] == []


@pytest.mark.parametrize("section", list(SECTIONS))
def test_no_mistake_repeats_a_value(tmp_path: Path, section: str) -> None:
    model = SECTIONS[section]
    # A wrong kind says nothing about the other keys.
    keys = [key for key in model.model_fields if key != "kind"]
    texts = [key for key in keys if model.model_fields[key].annotation is str]
    lines = [f"{key} = ['{CANARY}']" for key in texts]
    lines += [f"{key} = '{CANARY} '" for key in keys if key not in texts]
    if section.startswith("providers."):
        lines.append(f"kind = '{section.removeprefix('providers.')}'")
    mistakes = mistakes_of(written(tmp_path, "\n".join([f"[{section}]", *lines])))
    assert len(mistakes) == len(keys)
    assert CANARY not in str(mistakes)


def test_the_model_itself_does_not_repeat_a_value_in_its_errors() -> None:
    with pytest.raises(ValidationError) as caught:
        MockProviderSettings(kind="mock", receipt_token=[CANARY])  # type: ignore[arg-type]
    assert CANARY not in str(caught.value)
