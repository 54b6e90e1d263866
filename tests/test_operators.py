"""The settings of operators described without code: mistakes are found before anything is sent."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

from smsgw.errors import SettingsError
from smsgw.fields import MASK
from smsgw.lifecycle import RECEIPT_WORDS
from smsgw.operators import HttpProviderSettings, Words
from smsgw.presets import PRESETS
from smsgw.settings import load, masked
from tests.support import smsgw

HERE = "https://sms.example.com/send"


def mistake_in(**settings: Any) -> str:
    """The one mistake in these settings of an operator, without its name and source."""
    with pytest.raises(SettingsError) as caught:
        load(None, {}, {"providers": {"op": {"kind": "http", "url": HERE, **settings}}})
    (mistake,) = caught.value.members["mistakes"]
    assert mistake.startswith("providers.op.")
    return str(mistake).removeprefix("providers.op.").removesuffix(" (from option)")


def loaded(**settings: Any) -> HttpProviderSettings:
    provider = load(None, {}, {"providers": {"op": {"kind": "http", **settings}}}).providers["op"]
    assert isinstance(provider, HttpProviderSettings)
    return provider


@pytest.mark.parametrize(
    ("settings", "mistake"),
    [
        ({"url": ""}, "url: is needed where there is no preset"),
        ({"body": {"to": "{tO}"}}, "body: to: a { or } that is no placeholder"),
        ({"body": {"a": [{"b": "{number_of}"}]}}, "body: a.0.b: unknown placeholder {number_of}"),
        ({"query": {"id": "{id}"}}, "query: id: unknown placeholder {id}"),
        ({"url": f"{HERE}?{{texts}}"}, "url: unknown placeholder {texts}"),
        ({"headers": {"X-Text": "{text}"}}, "headers.X-Text: unknown placeholder {text}"),
        ({"headers": {"X-From": "{from}"}}, "headers.X-From: unknown placeholder {from}"),
        ({"headers": {"X": "a\r\nB: c"}}, "headers.X: Should be visible ASCII"),
        ({"headers": {"X: y": "a"}}, "headers.X: y: String should match pattern"),
        ({"headers": {"Host": "a"}}, "headers: Host: is set by the gateway itself"),
        ({"headers": {"content-length": "1"}}, "headers: content-length: is set by the gateway"),
        ({"body_format": "form", "body": {"a": {"b": "c"}}}, "body: a: should be a text or"),
        ({"body_format": "none", "body": {"a": "b"}}, "body: is not sent, as body_format is none"),
        ({"query": {"a": [["b"]]}}, "query: a: should be a text or a list of texts"),
        ({"body": {"key": "{key}"}}, "key: is needed: another setting says {key}"),
        ({"url": f"{HERE}/{{account}}"}, "account: is needed: another setting says {account}"),
        ({"headers": {"X": "{secret}"}}, "secret: is needed: another setting says {secret}"),
        ({"auth": "bearer"}, "secret: is needed for auth = 'bearer'"),
        ({"auth": "basic", "secret": "s"}, "account: is needed for auth = 'basic', or key"),
        ({"account": "a\nb"}, "account: String should match pattern"),
        ({"key": "a b"}, "key: Should be visible ASCII characters without spaces"),
        ({"statuses": {"2xx": "accepted"}}, "statuses.2xx: String should match pattern"),
        ({"statuses": {"200": "good"}}, "statuses.200: Input should be 'accepted', "),
        ({"codes": {"1": "bad"}}, "codes.1: Input should be 'accepted', "),
        ({"receipt_words": {"10": "OK"}}, "receipt_words.10: Input should be 'DELIVERED', "),
        ({"validity_s_min": 9, "validity_s_max": 8}, "validity_s_max: should be at least "),
        ({"public_url": "https://a"}, "public_url: needs a receipt_token"),
        ({"public_url": "a", "receipt_token": "t"}, "public_url: Should begin with http://"),
        ({"public_url": "https://a", "receipt_token": "t/u"}, "public_url: needs a receipt_token"),
        ({"receipt_poll_url": f"{HERE}/status"}, "receipt_poll_url: should say {id}"),
        ({"receipt_poll_s": 5, "receipt_poll_url": f"{HERE}/{{id}}"}, "receipt_poll_status: is "),
        ({"receipt_poll_s": 5, "receipt_poll_status": "a"}, "receipt_poll_status: polling needs"),
        ({"preset": "pigeon"}, "preset: Input should be '', 'twilio', "),
        ({"colour": "red"}, "colour: unknown setting"),
    ],
)
def test_a_mistake_is_named_with_its_key(settings: dict[str, Any], mistake: str) -> None:
    assert mistake_in(**settings).startswith(mistake)


@pytest.mark.parametrize(
    "url",
    [
        "sms.example.com/send",
        "ftp://sms.example.com",
        "https://{account}.example.com/",
        "https://user:pass@example.com/",
        "https://example.com@evil.example/",
        "https:///send",
        "https://a b/",
        "https://h/a b",
        "https://h/é",
        "https://h\\@evil.example/",
        "https://h#f",
        "https://:80/",
        "https://a..b/",
        "https://.b/",
        "https://[zz]/",
        "https://[::1/",
        f"https://{'x' * 64}.example.com/",
    ],
)
def test_an_address_has_a_host_that_no_message_chooses(url: str) -> None:
    assert mistake_in(url=url, account="x").startswith("url: Should begin with http:// or https://")


@pytest.mark.parametrize("port", ["0", "65536", "99999", "1000000"])
def test_an_address_has_a_port_that_there_is(port: str) -> None:
    for key in ("url", "base_url", "public_url"):
        mistake = mistake_in(**{key: f"https://h:{port}/", "receipt_token": "t"})
        assert mistake == f"{key}: Should have a port from 1 to 65535"


@pytest.mark.parametrize(
    "host", ["h", "a_b.example.com.", "h:65535", "127.0.0.1:1", "[::1]", "[::1]:80", "x" * 63]
)
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    assert loaded(url=f"https://{host}/").url == f"https://{host}/"


def test_an_address_may_begin_with_the_base_address_and_nowhere_else_say_it() -> None:
    based = loaded(base_url="http://127.0.0.1:1/a/", url="{base_url}/send")
    assert based.address(based.url) == "http://127.0.0.1:1/a/send"
    assert mistake_in(url="{base_url}/send") == "url: says {base_url}, and base_url is not set"
    elsewhere = mistake_in(base_url=HERE, url=f"{HERE}/{{base_url}}")
    assert elsewhere == "url: unknown placeholder {base_url}"


def test_credentials_and_headers_are_masked() -> None:
    shown = masked(
        load(
            None,
            {},
            {"providers": {"op": {"kind": "http", "url": HERE, "key": "k", "headers": {"X": "y"}}}},
        )
    )["providers"]["op"]
    assert (shown["key"], shown["secret"], shown["headers"]) == (MASK, "", {"X": MASK})


def test_the_command_line_names_every_mistake_and_shows_tables_as_toml(tmp_path: Path) -> None:
    path = tmp_path / "smsgw.toml"
    path.write_text("[providers.op]\nkind = 'http'\nurl = ''\nbody = { a = '{b}' }\n")
    checked = smsgw("--config", str(path), "config", "check")
    assert checked.returncode == 1
    assert "providers.op.url: is needed where there is no preset" in checked.stderr
    assert "providers.op.body: a: unknown placeholder {b}" in checked.stderr
    body = '{ "to it" = ["{to}", { a = true, b = 1.5 }] }'
    path.write_text(f"[providers.op]\nkind = 'http'\nurl = '{HERE}'\nbody = {body}\n")
    shown = smsgw("--config", str(path), "config", "show")
    assert shown.returncode == 0, shown.stderr
    provider = tomllib.loads(shown.stdout)["providers"]["op"]
    assert provider["body"] == {"to it": ["{to}", {"a": True, "b": 1.5}]}
    assert provider["statuses"] == {}


# Presets

CREDENTIALS = {"account": "AC1", "key": "k", "secret": "s"}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_needs_nothing_but_credentials(name: str) -> None:
    settings = loaded(preset=name, **CREDENTIALS)
    assert settings.url.startswith("{base_url}/")
    assert settings.id_path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_without_credentials_says_which(name: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load(None, {}, {"providers": {"op": {"kind": "http", "preset": name}}})
    for mistake in caught.value.members["mistakes"]:
        key = mistake.removeprefix("providers.op.").partition(":")[0]
        assert key in CREDENTIALS


def test_what_is_set_wins_over_the_preset_in_tables_key_by_key() -> None:
    settings = loaded(
        preset="twilio",
        **CREDENTIALS,
        base_url="http://127.0.0.1:1",
        body={"From": "", "MessagingServiceSid": "MG1"},
        codes={"21611": "refused"},
    )
    assert settings.base_url == "http://127.0.0.1:1"
    assert settings.body["From"] == ""
    assert settings.body["To"] == "{to}"
    assert settings.body["MessagingServiceSid"] == "MG1"
    assert (settings.codes["21611"], settings.codes["20429"]) == ("refused", "throttled")
    assert "MessagingServiceSid" not in PRESETS["twilio"]["body"]


def test_the_words_of_settings_are_words_of_receipts() -> None:
    assert set(Words.__args__) - {"ENROUTE"} <= set(RECEIPT_WORDS)  # type: ignore[attr-defined]
