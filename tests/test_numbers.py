import subprocess
import sys

import phonenumbers
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw import text
from smsgw.errors import InvalidRecipient, InvalidSender, SettingsError
from smsgw.numbers import Numbers, kind_of, masked, sender

PERSIAN = str.maketrans("0123456789", "۰۱۲۳۴۵۶۷۸۹")
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
GSM7 = text.ALPHABET.replace("\x1b", "") + "".join(text.EXTENSION)

IRAN = Numbers("IR")
NOWHERE = Numbers()

NOT_E164 = [
    "",
    "+",
    "989123456789",
    "09123456789",
    "00989123456789",
    "+98912",
    "+123456",
    "+1234567890123456",
    "+0989123456789",
    "++989123456789",
    "+989123456789\n",
    "\n+989123456789",
    "+989123456789\x00",
    " +989123456789",
    "+98 912 345 6789",
    "+98912345678a",
    "tel:+989123456789",
    "＋989123456789",
    "+989123456789".translate(PERSIAN),
    "+989123456789".translate(ARABIC),
    "+98912345678²",
]


def accepts(raw: str) -> bool:
    try:
        return sender(raw) == raw
    except InvalidSender:
        return False


@pytest.mark.parametrize("raw", ["+1234567", "+123456789012345", "+989123456789", "+15005550006"])
def test_e164_is_returned_as_it_is_with_and_without_a_region(raw: str) -> None:
    assert NOWHERE.recipient(raw) == raw
    assert IRAN.recipient(raw) == raw


@pytest.mark.parametrize("raw", NOT_E164)
def test_without_a_region_anything_but_e164_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRecipient):
        NOWHERE.recipient(raw)


@pytest.mark.parametrize(
    "raw",
    [
        "09123456789",
        "9123456789",
        "0912 345 6789",
        "0912-345-6789",
        "(0912) 345.6789",
        "0912\u00a0345\u20136789",
        "\u200e09123456789\u202c",
        "09123456789".translate(PERSIAN),
        "09123456789".translate(ARABIC),
        "۰۹۱۲ ۳۴۵ ۶۷۸۹",
        "00989123456789",
        "00 98 912 345 6789",
        "00989123456789".translate(PERSIAN),
        "989123456789",
        "+98 912 345 6789",
        "+98 (0)912 345 6789",
        "(+98) 912 345 6789",
        "+989123456789".translate(PERSIAN),
        "+989123456789".translate(ARABIC),
    ],
)
def test_with_a_region_what_people_type_there_becomes_e164(raw: str) -> None:
    assert IRAN.recipient(raw) == "+989123456789"


@pytest.mark.parametrize(
    ("region", "raw", "number"),
    [
        ("US", "(212) 555-0123", "+12125550123"),
        ("US", "011 98 912 345 6789", "+989123456789"),
        ("US", "00 98 912 345 6789", "+989123456789"),
        ("AU", "0061 412 345 678", "+61412345678"),
        ("IT", "02 3661 8300", "+390236618300"),
        ("GB", "020 7946 0958", "+442079460958"),
        ("RU", "8 (916) 123-45-67", "+79161234567"),
        ("IR", "001 500 555 0006", "+15005550006"),
        ("IR", "+1 500 555 0006", "+15005550006"),
    ],
)
def test_each_region_dials_in_its_own_way(region: str, raw: str, number: str) -> None:
    assert Numbers(region).recipient(raw) == number


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "110",
        "0912",
        "0912345678",
        "091234567890",
        "0000000000",
        "+0989123456789",
        "++989123456789",
        "0912+3456789",
        "09123456789\n",
        "09123456789\x00",
        "0912345678x",
        "call 09123456789",
        "09123456789 ext. 5",
        "tel:+989123456789",
        "0912345678²",
        "०९१२३४५६७८९",
        "0" * 100_000,
        " " * 60 + "09123456789",
    ],
)
def test_with_a_region_what_is_no_number_there_is_refused(raw: str) -> None:
    with pytest.raises(InvalidRecipient):
        IRAN.recipient(raw)


@given(st.text() | st.from_regex(r"[+0-9۰-۹ ()-]{0,24}", fullmatch=True))
def test_whatever_is_typed_the_answer_is_e164_or_a_refusal(raw: str) -> None:
    try:
        number = IRAN.recipient(raw)
    except InvalidRecipient:
        return
    assert NOWHERE.recipient(number) == number


def test_a_refusal_does_not_repeat_the_number_and_says_what_is_wanted() -> None:
    for numbers, raw in ((NOWHERE, "09123456789"), (IRAN, "091234567890")):
        with pytest.raises(InvalidRecipient, match=r"E\.164") as refused:
            numbers.recipient(raw)
        assert raw not in str(refused.value)
        assert raw[-7:] not in str(refused.value)
    with pytest.raises(InvalidRecipient, match="IR"):
        IRAN.recipient("1")


def test_clean_e164_never_reaches_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse(*_: object) -> None:
        raise AssertionError("the library was asked")

    numbers = Numbers("IR")
    monkeypatch.setattr(phonenumbers, "parse", parse)
    assert numbers.recipient("+989123456789") == "+989123456789"
    with pytest.raises(AssertionError, match="was asked"):
        numbers.recipient("09123456789")


def test_a_national_number_is_read_by_the_library_once(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = Numbers("IR")
    first = numbers.recipient("0912 345 6789")
    monkeypatch.delattr(phonenumbers, "parse")
    assert numbers.recipient("0912-345-6789") == first


def test_the_library_is_loaded_only_for_a_region() -> None:
    program = (
        "import sys; from smsgw.numbers import Numbers; Numbers().recipient('+989123456789');"
        "assert 'phonenumbers' not in sys.modules;"
        "Numbers('IR'); assert 'phonenumbers' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_a_region_without_the_library_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "phonenumbers", None)
    Numbers()
    with pytest.raises(SettingsError) as refused:
        Numbers("IR")
    assert "numbers.default_region" in str(refused.value)
    assert "pip install 'smsgw[numbers]'" in str(refused.value)


@pytest.mark.parametrize("region", ["XX", "IRN", "ir", "98", " ", "001"])
def test_an_unknown_region_is_named_with_its_setting(region: str) -> None:
    with pytest.raises(SettingsError, match=r"numbers\.default_region") as refused:
        Numbers(region)
    assert repr(region) in str(refused.value)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        ("+989123456789", "e164"),
        ("+1234567", "e164"),
        ("+123456789012345", "e164"),
        ("123", "short_code"),
        ("12345678", "short_code"),
        ("00000", "short_code"),
        ("A", "alphanumeric"),
        ("Smsgw", "alphanumeric"),
        ("Elevenchars", "alphanumeric"),
        ("1234567890a", "alphanumeric"),
        ("My Shop", "alphanumeric"),
        ("@Ñandù", "alphanumeric"),
        ("ΔΦΓΛΩΠΨΣΘΞß", "alphanumeric"),
        ("a" + "€" * 5, "alphanumeric"),
        ("€" * 5 + "a", "alphanumeric"),
        ("+98912abc", "alphanumeric"),
    ],
)
def test_a_sender_is_a_number_a_short_code_or_a_name(raw: str, kind: str) -> None:
    assert sender(raw) == raw
    assert kind_of(raw) == kind


@pytest.mark.parametrize(
    "raw",
    [
        "",
        "1",
        "12",
        "123456789",
        "+123456",
        "+1234567890123456",
        "+0123456789",
        "12345\n",
        "+989123456789\n",
        "12345".translate(PERSIAN),
        "12345".translate(ARABIC),
        "12-34",
        "   ",
        "€",
        "Twelve chars",
        "Shop\n",
        "Shop\r",
        "Shop\f",
        "\nShop",
        "Sh\x00op",
        "Sh\x1bop",
        "Sh\top",
        "فروشگاه",
        "Façade",
        "Shop`",
        "Shop\u200f",
        "Shop\ud83d",
        "Caf" + "e\u0301",
        "aa" + "€" * 10,
        "a" + "{" * 11,
        "{" * 11,
        "a" * 100_000,
    ],
)
def test_any_other_sender_is_refused(raw: str) -> None:
    with pytest.raises(InvalidSender) as refused:
        sender(raw)
    assert str(refused.value).startswith("from must be ")


def test_a_name_takes_exactly_the_printable_characters_of_the_alphabet_of_texts() -> None:
    accepted = {chr(code) for code in range(0x10000) if accepts("a" + chr(code))}
    assert accepted == set(GSM7) - set("\n\r\f")


def test_a_name_needs_a_letter_and_every_letter_of_the_alphabet_is_one() -> None:
    for character in GSM7:
        assert accepts(character) == character.isalpha(), character
        assert accepts("-" * 10 + character) == character.isalpha(), character


@given(st.text(st.sampled_from(sorted(set(GSM7) - set("\n\r\f"))), min_size=1, max_size=13))
def test_a_name_has_at_most_eleven_characters(name: str) -> None:
    has_letter = any(character.isalpha() for character in name)
    is_short_code = name.isdigit() and 3 <= len(name) <= 8
    is_number = name[0] == "+" and name[1:].isdigit() and len(name) >= 8 and name[1] != "0"
    fits = len(name) <= 11
    assert accepts(name) == ((has_letter and fits) or is_short_code or is_number)


@pytest.mark.parametrize(
    ("number", "shown"),
    [("+989123456789", "*********6789"), ("12345", "*2345"), ("1234", "1234"), ("", "")],
)
def test_a_masked_number_shows_its_last_four_characters(number: str, shown: str) -> None:
    assert masked(number) == shown
