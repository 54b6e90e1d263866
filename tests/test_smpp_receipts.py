"""Receipts as operators write them, after manuals, issues and others' tests, and some made up."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smsgw.lifecycle import RECEIPT_WORDS
from smsgw.providers.smpp.bodies import ShortMessage, Tag
from smsgw.providers.smpp.receipt import (
    FINAL_WORDS,
    INTERMEDIATE,
    NOTATIONS,
    Base,
    Receipt,
    canonical,
    forms,
    keys,
    parse,
)

UUID = "0e999f21-81ef-4974-a414-3de98174e3c7"
BARE = UUID.replace("-", "")


class Seen(NamedTuple):
    """A receipt's text, and what is to be read in it."""

    text: str | bytes
    id: str
    word: str
    reason: str | None = None


CORPUS = {
    "the standard's own": Seen(
        "id:1234567890 sub:001 dlvrd:001 submit date:0908312310 done date:0908312311 "
        "stat:DELIVRD err:000 Text:Hello SMPP world!",
        "1234567890",
        "DELIVRD",
    ),
    "dates with seconds": Seen(
        "id:a29f6845555647139e5c8f3b817f2c9a sub:001 dlvrd:001 submit date:141023215253 "
        "done date:141023215259 stat:DELIVRD err:000 text:",
        "a29f6845555647139e5c8f3b817f2c9a",
        "DELIVRD",
    ),
    "dates with a century and minutes, no sub, dlvrd or text": Seen(
        "id:c87c2273-7edb-4bc7-8d3a-7f57f21b625e submit date:201506201641 "
        "done date:201506201641 stat:DELIVRD err:000",
        "c87c2273-7edb-4bc7-8d3a-7f57f21b625e",
        "DELIVRD",
    ),
    "dates with a century and seconds, eight letters": Seen(
        "id:7 submit date:20260131120000 done date:20260131120007 stat:DELIVERD err:000",
        "7",
        "DELIVRD",
    ),
    "dates in SMPP's own format": Seen(
        "id:rdwjwxns18krxr9936ey96ymcw sub:000 dlvrd:000 submit date:180711070003912+ "
        "done date:180711070000012+ stat:UNDELIV err:000",
        "rdwjwxns18krxr9936ey96ymcw",
        "UNDELIV",
    ),
    "dates whose names are one word, and no date at all": Seen(
        "id:0118Z-0122I-2309U-57DGB sub:000 dlvrd:000 submitdate:180122230957 "
        "donedate:000000000000 stat:REJECTED err:375 text:",
        "0118Z-0122I-2309U-57DGB",
        "REJECTD",
        "err 375",
    ),
    "underscores": Seen(
        "id:1235 sub:001 dlvrd:1 Done_Date:2210131801 Submit_Date:2107081716 stat:EXPIRED err:0",
        "1235",
        "EXPIRED",
    ),
    "an error after a space": Seen(
        "id:9 sub:001 dlvrd:000 submit date:2601311200 done date:2601311201 stat:UNDELIV "
        "err: 042 text:x",
        "9",
        "UNDELIV",
        "err 042",
    ),
    "spaces after all colons": Seen(
        "id: 77AF sub: 000 dlvrd: 000 submit date: 2601311200 done date: 2601311201 "
        "stat: DELIVRD err: 0 text: ",
        "77AF",
        "DELIVRD",
    ),
    "a field that is empty, after which one begins": Seen(
        "id:1235 submit date:2107081716 sub: dlvrd:1 done date: stat:DELIVRD err: text:x",
        "1235",
        "DELIVRD",
    ),
    "small letters": Seen(
        "id:HW-001 sub:001 dlvrd:001 stat:delivrd err:000 text:", "HW-001", "DELIVRD"
    ),
    "mixed letters": Seen("Id:MX-001 Sub:001 Stat:Delivrd Err:000 Text:", "MX-001", "DELIVRD"),
    "capitals": Seen(
        "ID:5 SUB:001 DLVRD:001 SUBMIT DATE:2601311200 DONE DATE:2601311201 STAT:UNDELIV ERR:11",
        "5",
        "UNDELIV",
        "err 11",
    ),
    "DELIVERED": Seen("id:1 stat:DELIVERED", "1", "DELIVRD"),
    "UNDELIVERABLE": Seen("id:1 stat:UNDELIVERABLE err:5", "1", "UNDELIV", "err 5"),
    "UNDELIVERED": Seen("id:1 stat:UNDELIVERED", "1", "UNDELIV"),
    "FAILED, in six letters and without a date": Seen(
        "id:1216080510463401720 sub:001 dlvrd:001 submit date:1608051046 "
        "done date:0000000000 stat:FAILED err:002 Text:",
        "1216080510463401720",
        "FAILED",
        "err 002",
    ),
    "DELETED": Seen("id:M-1 sub:001 dlvrd:000 stat:DELETED err:000 text:", "M-1", "DELETED"),
    "REJECTD": Seen("id:M-2 stat:REJECTD err:008 text:", "M-2", "REJECTD", "err 008"),
    "err:nul": Seen("id:514 sub:001 dlvrd:001 stat:DELIVRD err:nul text:", "514", "DELIVRD"),
    "an error of four digits, a decimal id of 19": Seen(
        "id:9380935605053030457 sub:001 dlvrd:000 submit date:1706011145 "
        "done date:1706011145 stat:UNDELIV err:0032 text:",
        "9380935605053030457",
        "UNDELIV",
        "err 0032",
    ),
    "an error of four zeros and an ESC in the text": Seen(
        "id:117062714244798261 sub:001 dlvrd:001 submit date:1706271624 "
        "done date:1706271624 stat:DELIVRD err:0000 text:H\x1bello world",
        "117062714244798261",
        "DELIVRD",
    ),
    "an error in hexadecimal": Seen("id:4 stat:UNDELIV err:4A6", "4", "UNDELIV", "err 4A6"),
    "an error in words": Seen(
        "id:ERR-001 stat:UNDELIV err:E_NETWORK text:", "ERR-001", "UNDELIV", "err E_NETWORK"
    ),
    "an error in letters": Seen(
        "id:2 sub:001 dlvrd:001 stat:UNDELIV err:xxx Text:", "2", "UNDELIV", "err xxx"
    ),
    "an error of a delivered message": Seen(
        "id:6 stat:DELIVRD err:002 text:Text:Estimado cliente", "6", "DELIVRD", "err 002"
    ),
    "nothing but an id and a state": Seen("id:GW-1 stat:DELIVRD", "GW-1", "DELIVRD"),
    "another order": Seen(
        "stat:DELIVRD id:ORDER-001 err:000 sub:001 text:", "ORDER-001", "DELIVRD"
    ),
    "more spaces, before, between and after": Seen(
        "  id:WS-001  sub:001  dlvrd:001  stat:DELIVRD  err:000  text:  ", "WS-001", "DELIVRD"
    ),
    "line by line": Seen(
        "id:40072910491427628\nsub:001\r\ndlvrd:001\nsubmit date:1007291049 done\ndate:1007291049\n"
        "stat:DELIVRD\nerr:000",
        "40072910491427628",
        "DELIVRD",
    ),
    "commas": Seen("id:5512,sub:001,dlvrd:001,stat:DELIVRD,err:000", "5512", "DELIVRD"),
    "semicolons": Seen("id:5513;stat:EXPIRED;err:034", "5513", "EXPIRED", "err 034"),
    "equals signs": Seen("id=5514&stat=DELIVRD&err=0", "5514", "DELIVRD"),
    "quotes": Seen('id:"5515" stat:"DELIVRD" err:"000"', "5515", "DELIVRD"),
    "other names": Seen("message_id:5516 status:UNDELIV error code:7", "5516", "UNDELIV", "err 7"),
    "msgid and state": Seen("msgid:5517 state:EXPIRED", "5517", "EXPIRED"),
    "names that end like others": Seen(
        "valid:8 grid:9 substat:EXPIRED id:3 stat:DELIVRD preterr:5 err:000", "3", "DELIVRD"
    ),
    "fields of the operator's own": Seen(
        "id:CT-001 sub:001 dlvrd:001 network:43211 price:0.05 stat:DELIVRD err:000 mcc:432",
        "CT-001",
        "DELIVRD",
    ),
    "a hexadecimal id with its prefix": Seen(
        "id:0x1A2B3C4D sub:001 dlvrd:001 stat:DELIVRD err:000 text:", "0x1A2B3C4D", "DELIVRD"
    ),
    "an id with colons": Seen("id:ns:12345 stat:DELIVRD err:000", "ns:12345", "DELIVRD"),
    "an id of a part": Seen(
        "id:SAR-2347039245475-1EEDF843-2-1 sub:001 dlvrd:000 stat:UNDELIV err:000 text:",
        "SAR-2347039245475-1EEDF843-2-1",
        "UNDELIV",
    ),
    "a UUID in capitals": Seen(f"id:{UUID.upper()} stat:DELIVRD", UUID.upper(), "DELIVRD"),
    "zeros in front": Seen(
        "id:0000000012345678 sub:001 dlvrd:001 submit date:1601010100 done date:1601010101 "
        "stat:DELIVRD err:000 text:none",
        "0000000012345678",
        "DELIVRD",
    ),
    "a NUL at the end": Seen(
        b"id:0000436949 submit date:1504211508 done date:1504211508 stat:DELIVRD err:000\0",
        "0000436949",
        "DELIVRD",
    ),
    "a text padded with NULs": Seen(
        b"id:1 sub:001 dlvrd:001 stat:UNDELIV err:148 Text:" + bytes(20), "1", "UNDELIV", "err 148"
    ),
    "a text that is no UTF-8": Seen(
        b"id:152ec848 sub:001 stat:DELIVRD err:000 text:\xff\xfe\xe9El c\xf3digo",
        "152ec848",
        "DELIVRD",
    ),
    "UTF-16, big end first": Seen(
        "id:55 sub:001 stat:DELIVRD err:000 text:سلام".encode("utf-16-be"), "55", "DELIVRD"
    ),
    "UTF-16, little end first, with its mark": Seen(
        "\ufeffid:56 sub:001 stat:UNDELIV err:7 text:سلام".encode("utf-16-le"),
        "56",
        "UNDELIV",
        "err 7",
    ),
    "a text in several lines": Seen(
        "id:15620edc sub:001 dlvrd:001 submit date:1805091830 done date:1805091830 "
        "stat:DELIVRD err:000 text:Hola:\n?como va el t",
        "15620edc",
        "DELIVRD",
    ),
    "a text that looks like a receipt": Seen(
        "id:1 sub:001 dlvrd:001 stat:DELIVRD err:000 text:id:2 stat:UNDELIV err:042",
        "1",
        "DELIVRD",
    ),
    "a state only its author's text has": Seen(
        "id:1 sub:001 dlvrd:001 err:000 text:stat:UNDELIV", "1", "UNKNOWN"
    ),
    "ENROUTE": Seen("id:0512249005 stat:ENROUTE err:054 text:", "0512249005", "ENROUTE", "err 054"),
    "ACCEPTD": Seen(
        "id:881444543 sub:001 dlvrd:000 submit date:1512201521 done date:1512201521 "
        "stat:ACCEPTD err:000 text:ACK/OK      ",
        "881444543",
        "ACCEPTD",
    ),
    "ACCEPTED": Seen("id:1 stat:ACCEPTED", "1", "ACCEPTD"),
    "UNKNOWN": Seen("id:1 stat:UNKNOWN err:000", "1", "UNKNOWN"),
    "BUFFRED": Seen("id:1 stat:BUFFRED", "1", "BUFFERED"),
    "a word that nobody knows": Seen("id:1 stat:RT:0148 err:148 Text:", "1", "RT:0148", "err 148"),
    "no state": Seen("id:GW-2 sub:001 dlvrd:001 err:000 text:", "GW-2", "UNKNOWN"),
    "no id": Seen("sub:001 dlvrd:001 stat:DELIVRD err:000 text:", "", "DELIVRD"),
}


def receipt_of(
    text: str | bytes, esm_class: int = 0x04, tlvs: dict[int, bytes] | None = None
) -> Receipt:
    octets = text.encode("latin-1") if isinstance(text, str) else text
    receipt = parse(ShortMessage(esm_class=esm_class, short_message=octets, tlvs=tlvs or {}))
    assert receipt is not None
    return receipt


@pytest.mark.parametrize("seen", CORPUS.values(), ids=CORPUS)
def test_a_text_is_read_however_it_is_written(seen: Seen) -> None:
    assert receipt_of(seen.text) == Receipt(seen.word, seen.reason, seen.id, "")


@pytest.mark.parametrize("seen", CORPUS.values(), ids=CORPUS)
def test_a_text_may_also_stand_in_the_payload_and_behind_a_header(seen: Seen) -> None:
    octets = seen.text.encode("latin-1") if isinstance(seen.text, str) else seen.text
    payload = receipt_of(b"", tlvs={Tag.MESSAGE_PAYLOAD: octets})
    headed = receipt_of(b"\x05\x00\x03\x07\x02\x01" + octets, esm_class=0x44)
    assert payload == headed == receipt_of(octets)


def test_final_words_are_those_that_end_a_message_and_the_others_are_news() -> None:
    assert {word: word in RECEIPT_WORDS for word in FINAL_WORDS} == dict.fromkeys(FINAL_WORDS, True)
    words = {receipt_of(seen.text).word for seen in CORPUS.values()}
    words |= {
        receipt_of("", tlvs={Tag.MESSAGE_STATE: bytes((state,))}).word for state in range(256)
    }
    assert words >= FINAL_WORDS
    assert not (words - FINAL_WORDS) & RECEIPT_WORDS.keys()


@pytest.mark.parametrize("esm_class", [0x04, 0x05, 0x06, 0x07, 0x44, 0x84, 0xC4])
def test_a_receipt_is_what_its_esm_class_says(esm_class: int) -> None:
    octets = b"id:1 stat:DELIVRD"
    if esm_class & 0x40:
        octets = b"\x03\x70\x01A" + octets
    assert receipt_of(octets, esm_class) == Receipt("DELIVRD", None, "1", "")


@pytest.mark.parametrize("esm_class", [0x00, 0x01, 0x03, 0x08, 0x0C, 0x10, 0x18, 0x40, 0x80, 0x28])
def test_what_a_handset_wrote_is_no_receipt_whatever_it_says(esm_class: int) -> None:
    message = ShortMessage(
        esm_class=esm_class,
        short_message=b"id:1 sub:001 dlvrd:001 stat:DELIVRD err:000 text:",
        tlvs={Tag.RECEIPTED_MESSAGE_ID: b"1\0", Tag.MESSAGE_STATE: b"\2"},
    )
    assert parse(message) is None


@pytest.mark.parametrize("esm_class", [0x20, 0x24])
@pytest.mark.parametrize(
    ("text", "word", "reason"),
    [
        ("id:1 stat:BUFFRED err:027", "BUFFERED", "err 027"),
        ("id:1 stat:ENROUTE", "ENROUTE", None),
        ("id:1 stat:DELIVRD", INTERMEDIATE, "stat DELIVRD"),
        ("id:1 stat:UNDELIV err:1", INTERMEDIATE, "stat UNDELIV, err 1"),
        ("id:1", INTERMEDIATE, None),
    ],
)
def test_an_intermediate_notification_ends_nothing(
    esm_class: int, text: str, word: str, reason: str | None
) -> None:
    assert receipt_of(text, esm_class) == Receipt(word, reason, "1", "")


@pytest.mark.parametrize(
    ("state", "word"),
    [
        (0, "SCHEDULED"), (1, "ENROUTE"), (2, "DELIVRD"), (3, "EXPIRED"), (4, "DELETED"),
        (5, "UNDELIV"), (6, "ACCEPTD"), (7, "UNKNOWN"), (8, "REJECTD"), (9, "SKIPPED"),
        (77, "STATE_77"),
    ],
)  # fmt: skip
def test_a_state_may_stand_in_a_tlv_alone(state: int, word: str) -> None:
    tlvs = {Tag.MESSAGE_STATE: bytes((state,)), Tag.RECEIPTED_MESSAGE_ID: b"70BA8A69\0"}
    assert receipt_of("", tlvs=dict(tlvs)) == Receipt(word, None, "", "70BA8A69")


@pytest.mark.parametrize(
    "value", [b"ABC123", b"ABC123\0", b"ABC123\0junk", b"ABC123\0\xff\0", b" ABC123 \0"]
)
def test_the_id_of_a_tlv_ends_at_its_first_nul(value: bytes) -> None:
    assert receipt_of("", tlvs={Tag.RECEIPTED_MESSAGE_ID: value}).tlv_id == "ABC123"


@pytest.mark.parametrize(
    ("state", "text", "word", "reason"),
    [
        (b"\2", "stat:DELIVRD", "DELIVRD", None),
        (b"\2", "stat:UNDELIV", "DELIVRD", "stat UNDELIV"),
        (b"\5", "stat:DELIVRD err:1", "UNDELIV", "stat DELIVRD, err 1"),
        (b"\5", "stat:FAILED", "UNDELIV", "stat FAILED"),
        (b"\1", "stat:DELIVRD", "DELIVRD", None),
        (b"\7", "stat:EXPIRED", "EXPIRED", None),
        (b"\6", "stat:ENROUTE", "ACCEPTD", "stat ENROUTE"),
        (b"", "stat:DELIVRD", "DELIVRD", None),
        (b"\2\0", "", "DELIVRD", None),
    ],
)
def test_of_a_tlv_and_a_text_the_final_one_counts_and_of_two_the_tlv(
    state: bytes, text: str, word: str, reason: str | None
) -> None:
    receipt = receipt_of(text, tlvs={Tag.MESSAGE_STATE: state})
    assert (receipt.word, receipt.reason) == (word, reason)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\3\0\x15", "network error 21 (type 3)"),
        (b"\3\1\0\0", "network error 256 (type 3)"),
        (b"\3\0\0", None),
        (b"\0\0\0", None),
        (b"\3", None),
        (b"", None),
    ],
)
def test_a_network_error_is_a_reason(value: bytes, reason: str | None) -> None:
    tlvs = {Tag.MESSAGE_STATE: b"\5", Tag.NETWORK_ERROR_CODE: value}
    assert receipt_of("", tlvs=dict(tlvs)).reason == reason
    both = receipt_of("err:042", tlvs=dict(tlvs)).reason
    assert both == (f"err 042, {reason}" if reason else "err 042")


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"\0", "destination unavailable"),
        (b"\1", "destination address invalid"),
        (b"\2", "permanent network error"),
        (b"\3", "temporary network error"),
        (b"\4", "failure 4"),
        (b"", None),
    ],
)
def test_why_it_failed_may_stand_in_a_tlv_and_counts_where_the_text_has_no_error(
    value: bytes, reason: str | None
) -> None:
    tlvs = {Tag.MESSAGE_STATE: b"\5", Tag.DELIVERY_FAILURE_REASON: value}
    assert receipt_of("", tlvs=dict(tlvs)).reason == reason
    assert receipt_of("err:000", tlvs=dict(tlvs)).reason == reason
    assert receipt_of("err:042", tlvs=dict(tlvs)).reason == "err 042"
    network = {**tlvs, Tag.NETWORK_ERROR_CODE: b"\3\0\x15"}
    both = receipt_of("", tlvs=network).reason
    assert both == ", ".join(filter(None, (reason, "network error 21 (type 3)")))
    assert receipt_of("", tlvs={**tlvs, Tag.MESSAGE_STATE: b"\2"}).reason is None


@given(
    st.integers(0, 255),
    st.binary(max_size=300) | st.text("idstaerx:= 0A\0\n").map(str.encode),
    st.dictionaries(st.sampled_from(Tag), st.binary(max_size=300)),
)
def test_whatever_comes_it_is_a_receipt_or_none(
    esm_class: int, octets: bytes, tlvs: dict[int, bytes]
) -> None:
    receipt = parse(ShortMessage(esm_class=esm_class, short_message=octets, tlvs=tlvs))
    assert (receipt is None) is (esm_class & 0x3C not in (0x04, 0x20, 0x24))
    if receipt is not None:
        assert receipt.word
        assert len(receipt.word) <= 40
        assert len(receipt.text_id) <= 255
        assert len(receipt.tlv_id) <= 255
        for notation in NOTATIONS.values():
            assert "" not in keys(receipt, notation)


@pytest.mark.parametrize("text", ["id:" + " " * 60_000, "id" * 30_000, "stat :" * 10_000])
def test_a_long_text_is_not_read_to_its_end(text: str) -> None:
    assert receipt_of("id:1 stat:EXPIRED " + text).word == "EXPIRED"
    assert receipt_of(b"", tlvs={Tag.MESSAGE_PAYLOAD: text.encode()}).word


# Which message is meant


@pytest.mark.parametrize(
    ("notation", "response", "text_id", "tlv_id"),
    [
        # As is, or as good as.
        ("same", "abc-1", "abc-1", ""),
        ("same", "abc-1", "", "abc-1"),
        ("same", " 12345 ", "12345", ""),
        ("same", "12345678", "0000000012345678", ""),
        ("same", "0000000012345678", "12345678", "12345678"),
        ("same", "D6AE74D1", "d6ae74d1", ""),
        ("same", "0D6AE74D1", "D6AE74D1", ""),
        ("same", "1a2b3c4d", "0x1A2B3C4D", ""),
        ("same", UUID, UUID.upper(), ""),
        ("same", UUID, BARE, ""),
        ("same", BARE.upper(), UUID, ""),
        ("same", UUID, UUID[1:].upper(), ""),
        ("same", UUID, BARE.lstrip("0"), ""),
        ("same", "0118Z-0122I-2309U-57DGB", "0118Z-0122I-2309U-57DGB", ""),
        # Hexadecimal in the submit_sm_resp, decimal in the receipt.
        ("hex_to_decimal", "70BA8A69", "1891273321", ""),
        ("hex_to_decimal", "70BA8A69", "1891273321", "70BA8A69"),
        ("hex_to_decimal", "70ba8a69", "", "70BA8A69"),
        ("hex_to_decimal", "70BA8A69", "1891273321", "1891273321"),
        ("hex_to_decimal", "6aad5", "0000436949", "6aad5"),
        ("hex_to_decimal", "04000000086ECD50", "288230376293190992", ""),
        ("hex_to_decimal", "666C7CEC78", "439906790520", ""),
        ("hex_to_decimal", "812FC7470000001B", "9308878062554710043", ""),
        ("hex_to_decimal", "0000000012345678", "0305419896", ""),
        ("hex_to_decimal", "10C8F40D", "281605133", ""),
        # The account was switched to hexadecimal receipts: letters tell, digits alone could not.
        ("hex_to_decimal", "70BA8A69", "70ba8a69", ""),
        ("hex_to_decimal", UUID, UUID.upper(), ""),
        # The other way round.
        ("decimal_to_hex", "1891273321", "70BA8A69", ""),
        ("decimal_to_hex", "0012345678", "BC614E", ""),
        ("decimal_to_hex", "1891273321", "0x70ba8a69", ""),
        ("decimal_to_hex", "1891273321", "70BA8A69", "1891273321"),
        # Hexadecimal in both, so that capitals and zeros of short ids do not matter either.
        ("hex", "6AAD5", "06aad5", ""),
        ("hex", "0x1f", "1F", ""),
    ],
)
def test_a_receipt_finds_its_message(
    notation: str, response: str, text_id: str, tlv_id: str
) -> None:
    convention = NOTATIONS[notation]
    found = keys(Receipt("DELIVRD", None, text_id, tlv_id), convention)
    assert found[0] == canonical(response, convention.response)


@pytest.mark.parametrize(
    ("one", "another"),
    [
        ("1a", "1A"),
        ("AbCdEfG", "aBcDeFg"),
        ("xY7-long-identifier", "xy7-long-identifier"),
        ("12345-54321", "1234554321"),
        ("12345678", "305419896"),
        ("ABC", "0ABC"),
    ],
)
def test_ids_that_may_be_different_stay_different(one: str, another: str) -> None:
    assert canonical(one) != canonical(another)


def test_two_ids_that_do_not_agree_are_both_tried_the_tlv_first() -> None:
    assert keys(Receipt("DELIVRD", None, "text", "tlv")) == ("tlv", "text")
    assert keys(Receipt("DELIVRD", None, "same", "same")) == ("same",)
    assert keys(Receipt("DELIVRD", None, "", "")) == ()
    assert keys(Receipt("DELIVRD", None, " ", "\0")) == ()


@given(st.text(), st.sampled_from(["text", "hex", "decimal"]))
def test_any_text_has_a_canonical_form_which_is_one_of_its_forms(text: str, base: Base) -> None:
    key = canonical(text, base)
    assert key == canonical(f" {text}\0" if len(text) < 250 else text, base)
    assert key in (*forms(text), "")


@given(st.integers(0, (1 << 160) - 1))
def test_a_number_is_the_same_in_every_base_and_with_any_zeros(number: int) -> None:
    spelt = {
        canonical(f"{number:x}", "hex"),
        canonical(f"{number:X}", "hex"),
        canonical(f"{number:045X}", "hex"),
        canonical(f"0x{number:x}", "hex"),
        canonical(f"0x{number:x}", "decimal"),
        canonical(f"{number}", "decimal"),
        canonical(f"{number:060}", "decimal"),
        canonical(f"{number:060}"),
    }
    assert spelt == {str(number)}


@given(st.uuids())
def test_a_uuid_is_the_same_however_it_is_spelt(uuid: object) -> None:
    text = str(uuid)
    bare = text.replace("-", "")
    spelt = {text, text.upper(), bare, bare.upper(), bare.lstrip("0"), text.lstrip("0") or text}
    assert len({canonical(form) for form in spelt}) == 1
    assert {text, text.upper(), bare, bare.upper()} <= set(forms(text)) & set(forms(bare))


def test_the_forms_of_an_id_begin_with_the_id() -> None:
    assert forms("6aad5") == ("6aad5", "436949", "6AAD5")
    assert forms("436949")[0] == "436949"
    assert {"6aad5", "6AAD5", "4417865"} <= set(forms("436949"))
    assert forms("abc-1") == ("abc-1", "ABC-1")
    assert forms("") == ()
