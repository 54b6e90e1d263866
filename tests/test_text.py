import itertools
import re

import gsm0338
import pytest
import smsutil
from hypothesis import example, given
from hypothesis import strategies as st

from smsgw.text import (
    ALPHABET,
    EXTENSION,
    TextSize,
    encode_gsm7,
    encode_ucs2,
    mask_digits,
    measure,
    refuse_text,
    split,
)

BASIC = ALPHABET.replace("\x1b", "")
GSM7 = BASIC + "".join(EXTENSION)
ROCKET = "🚀"
SIN = "س"

gsm7_characters = st.sampled_from(GSM7)
ucs2_characters = st.sampled_from("سلامçЖ`\t " + ROCKET + "😀aZ\ud7ff\ue000\uffff\U0010ffff")


def runs_of(characters: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Texts of long runs, so that pairs meet the ends of parts."""
    run = st.builds(lambda character, times: character * times, characters, st.integers(1, 160))
    return st.lists(run, min_size=1, max_size=8).map("".join)


gsm7_texts = st.text(gsm7_characters, min_size=1) | runs_of(gsm7_characters)
ucs2_texts = (st.text(min_size=1) | runs_of(ucs2_characters)).filter(
    lambda text: "\x1b" not in text
)
texts = gsm7_texts | ucs2_texts


def units(text: str, encoding: str) -> int:
    """Septets or UTF-16 units, counted one character at a time."""
    if encoding == "GSM-7":
        return sum(2 if character in EXTENSION else 1 for character in text)
    return sum(2 if ord(character) > 0xFFFF else 1 for character in text)


@pytest.mark.parametrize(
    ("text", "encoding", "parts"),
    [
        ("{" * 160, "GSM-7", 3),
        ("€" * 81, "GSM-7", 2),
        ("a" * 159 + "{", "GSM-7", 2),
        ("\f" * 81, "GSM-7", 2),
        ("a" * 152 + "€" + "a" * 152, "GSM-7", 3),
        ("é" * 160, "GSM-7", 1),
        ("é" + "a" * 159, "GSM-7", 1),
        ("`" * 100, "UCS-2", 2),
        ("\t" + "a" * 70, "UCS-2", 2),
        (ROCKET * 36, "UCS-2", 2),
        (ROCKET * 70, "UCS-2", 3),
        (SIN * 66 + ROCKET + SIN * 66, "UCS-2", 3),
        ("a" * 306, "GSM-7", 2),
        ("a" * 307, "GSM-7", 3),
        (SIN * 70, "UCS-2", 1),
        (SIN * 71, "UCS-2", 2),
        (SIN * 134, "UCS-2", 2),
        (SIN * 135, "UCS-2", 3),
        ("a" * 160, "GSM-7", 1),
        ("a" * 161, "GSM-7", 2),
        ("a" * 158 + "{", "GSM-7", 1),
        ("{" * 80, "GSM-7", 1),
        ("a" * 151 + "€" + "a" * 152, "GSM-7", 2),
        ("a" * 151 + "€" + "a" * 153, "GSM-7", 2),
        ("a" * 151 + "€" + "a" * 154, "GSM-7", 3),
        ("a" * 304 + "€", "GSM-7", 2),
        ("a" * 305 + "€", "GSM-7", 3),
        (ROCKET * 35, "UCS-2", 1),
        (SIN * 68 + ROCKET, "UCS-2", 1),
        (SIN * 69 + ROCKET, "UCS-2", 2),
        (SIN * 65 + ROCKET + SIN * 67, "UCS-2", 2),
        ("a" * 255 * 153 + "a", "GSM-7", 256),
    ],
)
def test_a_text_has_as_many_parts_as_the_standard_says(
    text: str, encoding: str, parts: int
) -> None:
    assert measure(text) == TextSize(encoding, parts, len(text))
    assert len(split(text)) == parts


@pytest.mark.parametrize("outsider", ["ç", "`", "“", "’", "—", "\u00a0", "\t", "\v", "ş", SIN, "µ"])
def test_one_character_outside_the_alphabet_makes_the_text_ucs2(outsider: str) -> None:
    assert measure("a" * 69 + outsider) == TextSize("UCS-2", 1, 70)
    assert measure("a" * 70 + outsider) == TextSize("UCS-2", 2, 71)
    with pytest.raises(UnicodeEncodeError):
        encode_gsm7("a" + outsider)


def test_characters_are_what_a_reader_counts_and_not_units() -> None:
    assert measure("a{€").characters == 3
    assert measure(ROCKET + "a").characters == 2


def test_the_empty_text_is_measured_as_one_empty_part() -> None:
    assert measure("") == TextSize("GSM-7", 1, 0)
    assert split("") == [""]


@pytest.mark.parametrize(
    ("character", "code"),
    [
        ("@", 0x00), ("£", 0x01), ("$", 0x02), ("¥", 0x03), ("è", 0x04), ("é", 0x05), ("ù", 0x06),
        ("ì", 0x07), ("ò", 0x08), ("Ç", 0x09), ("\n", 0x0A), ("Ø", 0x0B), ("ø", 0x0C),
        ("\r", 0x0D), ("Å", 0x0E), ("å", 0x0F), ("Δ", 0x10), ("_", 0x11), ("Φ", 0x12),
        ("Γ", 0x13), ("Λ", 0x14), ("Ω", 0x15), ("Π", 0x16), ("Ψ", 0x17), ("Σ", 0x18), ("Θ", 0x19),
        ("Ξ", 0x1A), ("Æ", 0x1C), ("æ", 0x1D), ("ß", 0x1E), ("É", 0x1F), ("¤", 0x24),
        ("¡", 0x40), ("Ä", 0x5B), ("Ö", 0x5C), ("Ñ", 0x5D), ("Ü", 0x5E), ("§", 0x5F), ("¿", 0x60),
        ("ä", 0x7B), ("ö", 0x7C), ("ñ", 0x7D), ("ü", 0x7E), ("à", 0x7F),
        *((chr(code), code) for code in range(0x20, 0x7B) if chr(code) not in "$@[\\]^_`"),
    ],
)  # fmt: skip
def test_a_basic_character_has_its_code_and_costs_one_septet(character: str, code: int) -> None:
    assert encode_gsm7(character) == bytes([code])
    assert measure(character * 160) == TextSize("GSM-7", 1, 160)
    assert measure(character * 161) == TextSize("GSM-7", 2, 161)
    assert split(character * 161) == [character * 153, character * 8]


@pytest.mark.parametrize(
    ("character", "code"),
    [
        ("\f", 0x0A), ("^", 0x14), ("{", 0x28), ("}", 0x29), ("\\", 0x2F),
        ("[", 0x3C), ("~", 0x3D), ("]", 0x3E), ("|", 0x40), ("€", 0x65),
    ],
)  # fmt: skip
def test_an_extension_character_has_its_code_and_costs_two_septets(
    character: str, code: int
) -> None:
    assert encode_gsm7(character) == bytes([0x1B, code])
    assert measure(character * 80) == TextSize("GSM-7", 1, 80)
    assert measure(character * 81) == TextSize("GSM-7", 2, 81)
    assert split(character * 81) == [character * 76, character * 5]


def test_the_alphabet_has_128_places_and_127_characters_and_ten_more() -> None:
    assert len(ALPHABET) == len(set(ALPHABET)) == 128
    assert len(set(GSM7)) == 137
    alphabet = {chr(code) for code in range(0x10000) if measure(chr(code)).encoding == "GSM-7"}
    assert alphabet == set(GSM7)


@given(texts)
def test_the_parts_join_to_the_text(text: str) -> None:
    assert "".join(split(text)) == text


@given(texts)
def test_measuring_counts_the_parts_that_splitting_makes(text: str) -> None:
    size = measure(text)
    assert size == (size.encoding, len(split(text)), len(text))


@given(texts)
def test_each_part_fits_and_is_as_full_as_can_be(text: str) -> None:
    encoding = measure(text).encoding
    single, several = (160, 153) if encoding == "GSM-7" else (70, 67)
    parts = split(text)
    capacity = single if len(parts) == 1 else several
    assert all(units(part, encoding) <= capacity for part in parts)
    assert (len(parts) == 1) == (units(text, encoding) <= single)
    for part, following in itertools.pairwise(parts):
        assert units(part + following[0], encoding) > capacity


@given(texts)
def test_no_part_begins_or_ends_inside_a_pair(text: str) -> None:
    encode = encode_gsm7 if measure(text).encoding == "GSM-7" else encode_ucs2
    assert b"".join(map(encode, split(text))) == encode(text)


@given(texts)
@example("a" * 152 + "€" + "a" * 152)
@example(SIN * 66 + ROCKET + SIN * 66)
def test_smsutil_splits_alike(text: str) -> None:
    theirs = smsutil.split(text)
    assert split(text) == [part.content for part in theirs.parts]
    assert measure(text).encoding == {"gsm0338": "GSM-7", "utf_16_be": "UCS-2"}[theirs.encoding]


@given(gsm7_texts)
@example(GSM7)
def test_gsm0338_encodes_alike(text: str) -> None:
    assert encode_gsm7(text) == gsm0338.Codec().encode(text)[0]


@given(ucs2_texts)
def test_ucs2_is_utf_16_with_the_high_octet_first(text: str) -> None:
    assert encode_ucs2(text).decode("utf-16-be") == text
    assert encode_ucs2("س" + ROCKET) == b"\x06\x33\xd8\x3d\xde\x80"


def test_what_no_encoding_holds_is_an_error_and_never_replaced() -> None:
    for text in ("\x1b", "a\x00", "ç", SIN):
        with pytest.raises(UnicodeEncodeError):
            encode_gsm7(text)
    with pytest.raises(UnicodeEncodeError):
        encode_ucs2("\ud83d")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("\x00", "NUL"),
        ("سلام\x00", "NUL"),
        ("a\x1be", "ESC"),
        ("\ud83d", "surrogates"),
        ("سلام \ude80", "surrogates"),
        ("\ud800a", "surrogates"),
        ("a\udfff", "surrogates"),
    ],
)
def test_a_text_that_cannot_be_sent_is_refused_in_a_sentence(text: str, named: str) -> None:
    refusal = refuse_text(text)
    assert refusal is not None
    assert refusal.startswith("text must not ")
    assert named in refusal


def test_every_other_control_character_is_text() -> None:
    for code in [*range(0x01, 0x1B), *range(0x1C, 0x20), *range(0x7F, 0xA0)]:
        assert refuse_text(chr(code)) is None
        expected = "GSM-7" if chr(code) in "\n\r\f" else "UCS-2"
        assert measure(chr(code)).encoding == expected


@given(st.text(st.characters(), min_size=1))
def test_a_text_is_refused_for_nothing_but_nul_escape_and_lone_surrogates(text: str) -> None:
    assert (refuse_text(text) is None) == (re.search("[\x00\x1b\ud800-\udfff]", text) is None)


def test_counting_never_fails_even_on_a_text_to_be_refused() -> None:
    for text in ("\ud83d" * 71, "\x1b" * 71, "\x00" * 71, "\ud83d" + ROCKET * 35):
        assert measure(text) == TextSize("UCS-2", 2, len(text))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("Your code is 482913.", "Your code is ******."),
        ("123", "123"),
        ("1234", "****"),
        ("1234567890", "**********"),
        ("12345678901", "12345678901"),
        ("G-482913 until 2359, 15 min", "G-****** until ****, 15 min"),
        ("4829\n1234", "****\n****"),
        ("a4829b", "a****b"),
        ("کد شما ۴۸۲۹۱۳ است", "کد شما ****** است"),
        ("رمز ٤٨٢٩١٣", "رمز ******"),
        ("४८२९", "****"),
        ("½¼²³", "½¼²³"),
        ("", ""),
    ],
)
def test_runs_of_four_to_ten_digits_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert mask_digits(text) == masked
