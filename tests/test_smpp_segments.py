import re

import gsm0338
import pytest
import smsutil
from hypothesis import example, given
from hypothesis import strategies as st

from smsgw.ids import NumberSource
from smsgw.providers.smpp.bodies import Address, Command, ShortMessage, Tag
from smsgw.providers.smpp.pdu import PduError, decode, encode, frames
from smsgw.providers.smpp.segments import (
    VALIDITY_MAX_S,
    Charset,
    Method,
    Segment,
    destination,
    reference_of,
    segments,
    source,
    validity_period,
)
from smsgw.text import ALPHABET, EXTENSION, encode_gsm7, encode_ucs2, measure, split

GSM7 = ALPHABET.replace("\x1b", "") + "".join(EXTENSION)
ROCKET = "🚀"
SIN = "س"
METHODS: list[Method] = ["udh", "udh16", "sar", "payload"]


def runs_of(characters: str) -> st.SearchStrategy[str]:
    """Texts of long runs, so that pairs meet the ends of parts."""
    run = st.builds(
        lambda character, times: character * times, st.sampled_from(characters), st.integers(1, 160)
    )
    return st.lists(run, min_size=1, max_size=6).map("".join)


gsm7_texts = st.text(st.sampled_from(GSM7), min_size=1) | runs_of("ab€{é@\f")
ucs2_texts = st.text(min_size=1).filter(lambda text: "\x1b" not in text) | runs_of("aسç" + ROCKET)
texts = gsm7_texts | ucs2_texts
latin1_texts = st.text(
    st.sampled_from([character for character in GSM7 if ord(character) < 256]), min_size=1
) | runs_of("ab{é@^")
references = st.integers(0, 0xFFFF)


def header_of(segment: Segment) -> tuple[bytes, bytes]:
    """The user data header, if there is one, and what follows."""
    if not segment.esm_class & 0x40:
        return b"", segment.short_message
    length = segment.short_message[0] + 1
    return segment.short_message[:length], segment.short_message[length:]


def read(segment: Segment, charset: str = "gsm") -> str:
    octets = header_of(segment)[1] or segment.tlvs.get(Tag.MESSAGE_PAYLOAD, b"")
    if segment.data_coding == 8:
        return octets.decode("utf-16-be")
    assert segment.data_coding == 0
    if charset == "latin1":
        return octets.decode("latin-1")
    decoded: str = gsm0338.Codec().decode(octets)[0]
    return decoded


@given(texts, references, st.sampled_from(["udh", "udh16", "sar"]))
@example("a" * 152 + "€" + "a" * 152, 7, "udh")
@example(SIN * 66 + ROCKET + SIN * 66, 7, "udh16")
def test_there_are_as_many_segments_as_parts_were_counted(
    text: str, reference: int, method: Method
) -> None:
    cut = segments(text, reference, method)
    assert len(cut) == measure(text).parts
    assert "".join(read(segment) for segment in cut) == text


@given(texts, references)
def test_no_segment_is_larger_than_a_handset_takes(text: str, reference: int) -> None:
    for method in METHODS[:3]:
        for segment in segments(text, reference, method):
            header, body = header_of(segment)
            header_octets = len(header) if method != "sar" or not segment.tlvs else 6
            if segment.data_coding == 8:
                assert header_octets + len(body) <= 140
            else:
                # The header is filled up to a whole septet.
                assert -(-header_octets * 8 // 7) + len(body) <= 160


@given(texts)
def test_another_library_cuts_in_the_same_places(text: str) -> None:
    theirs = [part.content for part in smsutil.split(text).parts]
    assert [read(segment) for segment in segments(text, 7)] == theirs


@given(gsm7_texts)
def test_another_library_writes_gsm_7_the_same_way(text: str) -> None:
    (segment,) = segments(text, 7, "payload")
    octets = segment.short_message or segment.tlvs[Tag.MESSAGE_PAYLOAD]
    assert octets == gsm0338.Codec().encode(text)[0]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("text", "octets", "coding"),
    [
        ("a" * 160, b"a" * 160, 0),
        ("@€", b"\x00\x1b\x65", 0),
        (SIN * 70, b"\x06\x33" * 70, 8),
        (ROCKET, b"\xd8\x3d\xde\x80", 8),
    ],
)
def test_a_text_of_one_part_is_sent_plainly(
    method: Method, text: str, octets: bytes, coding: int
) -> None:
    assert segments(text, 0x1234, method) == [Segment(octets, 0, coding, {})]


def test_a_header_of_8_bits() -> None:
    cut = segments("a" * 307, 0x1234)
    assert cut == [
        Segment(b"\x05\x00\x03\x34\x03\x01" + b"a" * 153, 0x40, 0, {}),
        Segment(b"\x05\x00\x03\x34\x03\x02" + b"a" * 153, 0x40, 0, {}),
        Segment(b"\x05\x00\x03\x34\x03\x03" + b"a", 0x40, 0, {}),
    ]


def test_a_header_of_16_bits_where_it_costs_no_part() -> None:
    assert segments("a" * 300, 0x1234, "udh16") == [
        Segment(b"\x06\x08\x04\x12\x34\x02\x01" + b"a" * 152, 0x40, 0, {}),
        Segment(b"\x06\x08\x04\x12\x34\x02\x02" + b"a" * 148, 0x40, 0, {}),
    ]
    (first, second) = segments(SIN * 132, 0x0102, "udh16")
    assert first.short_message == b"\x06\x08\x04\x01\x02\x02\x01" + b"\x06\x33" * 66
    assert len(second.short_message) == 139
    for text in ("a" * 306, SIN * 134):
        assert segments(text, 0x1234, "udh16") == segments(text, 0x1234, "udh")


def test_tlvs_instead_of_a_header() -> None:
    assert segments("a" * 160 + "b", 0x1234, "sar") == [
        Segment(b"a" * 153, 0, 0, {0x020C: b"\x12\x34", 0x020E: b"\x02", 0x020F: b"\x01"}),
        Segment(b"a" * 7 + b"b", 0, 0, {0x020C: b"\x12\x34", 0x020E: b"\x02", 0x020F: b"\x02"}),
    ]


def test_one_payload_of_all_parts() -> None:
    assert segments("a" * 500, 7, "payload") == [Segment(b"", 0, 0, {0x0424: b"a" * 500})]
    assert segments(SIN * 500, 7, "payload") == [Segment(b"", 0, 8, {0x0424: b"\x06\x33" * 500})]


def test_255_parts_are_numbered() -> None:
    cut = segments("a" * 255 * 153, 7)
    assert [segment.short_message[4:6] for segment in cut] == [
        bytes((255, number)) for number in range(1, 256)
    ]


@given(latin1_texts, references, st.sampled_from(METHODS))
def test_where_the_operator_takes_latin_1_it_gets_it_in_the_same_parts(
    text: str, reference: int, method: Method
) -> None:
    plain = segments(text, reference, method)
    latin = segments(text, reference, method, "latin1")
    assert len(latin) == len(plain)
    for ours, theirs in zip(latin, plain, strict=True):
        assert ours.data_coding == theirs.data_coding == 0
        assert read(ours, "latin1") == read(theirs)
        assert header_of(ours)[0] == header_of(theirs)[0]


@given(ucs2_texts.filter(lambda text: measure(text).encoding == "UCS-2"), references)
def test_the_charset_does_not_matter_to_ucs_2(text: str, reference: int) -> None:
    assert segments(text, reference, "udh", "latin1") == segments(text, reference)


@pytest.mark.parametrize(
    ("text", "parts"),
    [("20 €", 1), ("Δ" * 70, 1), ("€" * 81, 2), ("a" * 80 + "€" * 45, 2), ("€" * 160, 3)],
)
@pytest.mark.parametrize("method", METHODS)
def test_what_latin_1_lacks_goes_out_in_ucs_2_where_that_needs_no_more_parts(
    text: str, parts: int, method: Method
) -> None:
    cut = segments(text, 7, method, "latin1")
    assert measure(text).parts == parts
    assert len(cut) == (1 if method == "payload" else parts)
    assert {segment.data_coding for segment in cut} == {8}
    assert "".join(map(read, cut)) == text
    assert all(len(segment.short_message) <= 140 for segment in cut)


@pytest.mark.parametrize("text", ["a" * 70 + "€", "a" * 150 + "Δ", "a" * 300 + "€"])
@pytest.mark.parametrize("method", METHODS)
def test_what_latin_1_lacks_is_refused_where_ucs_2_needs_more_parts(
    text: str, method: Method
) -> None:
    with pytest.raises(PduError, match="Latin-1"):
        segments(text, 7, method, "latin1")


@given(texts, references, st.sampled_from(METHODS), st.sampled_from(["gsm", "latin1"]))
def test_every_segment_fits_into_a_submit_sm(
    text: str, reference: int, method: Method, charset: Charset
) -> None:
    try:
        cut = segments(text, reference, method, charset)
    except PduError:
        assert charset == "latin1"
        return
    for segment in cut:
        message = ShortMessage(
            source("ACME"),
            destination("+15005550006"),
            segment.esm_class,
            segment.data_coding,
            short_message=segment.short_message,
            tlvs=segment.tlvs,
        )
        (pdu,) = frames(bytearray(encode(Command.SUBMIT_SM, 1, message)))
        assert decode(pdu) == message


@given(texts)
def test_a_wide_reference_never_needs_fewer_parts(text: str) -> None:
    parts = split(text, wide_reference=True)
    assert "".join(parts) == text
    assert len(parts) >= len(split(text))
    if len(parts) > 1:
        write, octets_max = (
            (encode_gsm7, 152) if measure(text).encoding == "GSM-7" else (encode_ucs2, 132)
        )
        assert all(len(write(part)) <= octets_max for part in parts)


def test_a_reference_is_always_the_same_and_neighbours_differ() -> None:
    numbers = NumberSource(3, 0)
    made = [numbers.next(1_790_000_000_000 + ms) for ms in range(64) for _ in range(4)]
    references = [reference_of(number) for number in made]
    assert references == [reference_of(number) for number in made]
    assert all(0 <= reference <= 0xFFFF for reference in references)
    assert len(set(references)) == len(references)
    # 8 of its bits are enough for texts that follow each other.
    short = [reference & 0xFF for reference in references]
    assert all(len(set(short[at : at + 4])) == 4 for at in range(0, len(short), 4))
    assert len(set(short)) > 128


@pytest.mark.parametrize(
    ("sender", "address"),
    [
        ("+989121234567", Address(1, 1, "989121234567")),
        ("ACME", Address(5, 0, "ACME")),
        ("1-800-ACME", Address(5, 0, "1-800-ACME")),
        ("Bläh @ 7", Address(5, 0, "Bläh @ 7")),
        ("123", Address(3, 0, "123")),
        ("20004000", Address(3, 0, "20004000")),
    ],
)
def test_a_sender_has_a_type_of_number(sender: str, address: Address) -> None:
    assert source(sender) == address


def test_a_short_code_may_be_of_another_type() -> None:
    assert source("12345", 0, 1) == Address(0, 1, "12345")
    assert source("+98912123", 0, 1) == Address(1, 1, "98912123")


def test_a_recipient_is_international_without_its_plus() -> None:
    assert destination("+15005550006") == Address(1, 1, "15005550006")
    with pytest.raises(AssertionError):
        destination("15005550006")


@pytest.mark.parametrize(
    ("valid_s", "period"),
    [
        (604_800, "000007000000000R"),
        (259_200.0, "000003000000000R"),
        (1, "000000000001000R"),
        (0.0, "000000000001000R"),
        (-5.0, "000000000001000R"),
        (59.999, "000000000059000R"),
        (60, "000000000100000R"),
        (3_599, "000000005959000R"),
        (86_399.9, "000000235959000R"),
        (90_061, "000001010101000R"),
        (VALIDITY_MAX_S, "000030000000000R"),
        (float("inf"), "000030000000000R"),
    ],
)
def test_a_validity_is_relative_and_rounded_down(valid_s: float, period: str) -> None:
    assert validity_period(valid_s) == period


@given(st.floats(1, VALIDITY_MAX_S))
def test_a_validity_is_less_than_a_second_short(valid_s: float) -> None:
    match = re.fullmatch(r"0000(\d\d)(\d\d)(\d\d)(\d\d)000R", validity_period(valid_s))
    assert match is not None
    days, hours, minutes, seconds = map(int, match.groups())
    assert hours < 24
    assert minutes < 60
    assert seconds < 60
    whole = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert 0 <= valid_s - whole < 1
