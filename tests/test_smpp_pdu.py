import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from smsgw.providers.smpp.bodies import (
    RESPONSE,
    Address,
    Alert,
    Bind,
    BindResponse,
    Body,
    Cancel,
    Command,
    MessageId,
    Outbind,
    Pdu,
    Query,
    QueryResponse,
    ShortMessage,
    Tag,
)
from smsgw.providers.smpp.pdu import (
    PDU_BYTES_MAX,
    SEQUENCE_MAX,
    PduError,
    answer,
    decode,
    encode,
    frames,
    nack,
    next_sequence,
)
from smsgw.providers.smpp.segments import destination, segments, source, validity_period
from smsgw.providers.smpp.status import CommandStatus

characters = st.characters(min_codepoint=0x20, max_codepoint=0xFF).filter(str.isprintable)
octets = st.integers(0, 255)


def texts(octets_max: int) -> st.SearchStrategy[str]:
    return st.text(characters, max_size=octets_max - 1)


def addresses(octets_max: int = 21) -> st.SearchStrategy[Address]:
    return st.builds(Address, octets, octets, texts(octets_max))


times = st.sampled_from(["", "000007000000000R", "260131120000048+"])
tlvs = st.dictionaries(
    st.integers(0, 0xFFFF).filter(lambda tag: tag != Tag.MESSAGE_PAYLOAD),
    st.binary(max_size=40),
    max_size=4,
)
short_messages = st.builds(
    ShortMessage,
    source=addresses(),
    destination=addresses(),
    esm_class=octets,
    data_coding=octets,
    registered_delivery=octets,
    service_type=texts(6),
    short_message=st.binary(max_size=254),
    validity_period=times,
    schedule_delivery_time=times,
    protocol_id=octets,
    priority_flag=octets,
    replace_if_present=octets,
    default_message_id=octets,
    tlvs=tlvs,
)
data_messages = st.builds(
    ShortMessage,
    source=addresses(65),
    destination=addresses(65),
    esm_class=octets,
    data_coding=octets,
    registered_delivery=octets,
    service_type=texts(6),
    tlvs=tlvs | st.builds(lambda payload: {int(Tag.MESSAGE_PAYLOAD): payload}, st.binary()),
)
binds = st.builds(
    Bind,
    system_id=texts(16),
    password=texts(17),
    system_type=texts(13),
    interface_version=octets,
    addresses=addresses(41),
)
message_ids = st.builds(MessageId, texts(65), tlvs)
bind_responses = st.builds(BindResponse, texts(16), tlvs)
BODIES: dict[Command, st.SearchStrategy[Body]] = {
    Command.BIND_RECEIVER: binds,
    Command.BIND_TRANSMITTER: binds,
    Command.BIND_TRANSCEIVER: binds,
    Command.BIND_RECEIVER_RESP: bind_responses,
    Command.BIND_TRANSMITTER_RESP: bind_responses,
    Command.BIND_TRANSCEIVER_RESP: bind_responses,
    Command.OUTBIND: st.builds(Outbind, texts(16), texts(17)),
    Command.SUBMIT_SM: short_messages,
    Command.DELIVER_SM: short_messages,
    Command.DATA_SM: data_messages,
    Command.SUBMIT_SM_RESP: message_ids,
    Command.DELIVER_SM_RESP: message_ids,
    Command.DATA_SM_RESP: message_ids,
    Command.QUERY_SM: st.builds(Query, texts(65), addresses()),
    Command.QUERY_SM_RESP: st.builds(QueryResponse, texts(65), times, octets, octets),
    Command.CANCEL_SM: st.builds(Cancel, texts(6), texts(65), addresses(), addresses()),
    Command.ALERT_NOTIFICATION: st.builds(Alert, addresses(65), addresses(65), tlvs),
}
WITHOUT_BODY = [
    Command.ENQUIRE_LINK,
    Command.ENQUIRE_LINK_RESP,
    Command.UNBIND,
    Command.UNBIND_RESP,
    Command.CANCEL_SM_RESP,
    Command.REPLACE_SM_RESP,
    Command.SUBMIT_MULTI_RESP,
    Command.GENERIC_NACK,
]
UNANSWERED = [Command.OUTBIND, Command.ALERT_NOTIFICATION]
NOT_UNDERSTOOD = [Command.REPLACE_SM, Command.SUBMIT_MULTI]
sequences = st.integers(1, SEQUENCE_MAX)
written = st.sampled_from(list(BODIES)).flatmap(
    lambda command: st.builds(encode, st.just(command), sequences, BODIES[command])
)

MESSAGE = ShortMessage(
    source=Address(5, 0, "ACME"),
    destination=Address(1, 1, "989121234567"),
    esm_class=0x40,
    data_coding=8,
    registered_delivery=1,
    short_message=b"\x05\x00\x03\x07\x02\x01\x06\x33",
    validity_period="000003000000000R",
    tlvs={Tag.USER_MESSAGE_REFERENCE: b"\x00\x07"},
)
MESSAGE_OCTETS = bytes.fromhex(
    "00 00 00 4f 00 00 00 04 00 00 00 00 00 00 00 07"  # header
    "00 05 00 41 43 4d 45 00 01 01 39 38 39 31 32 31 32 33 34 35 36 37 00"  # "", ACME, 98…
    "40 00 00 00 30 30 30 30 30 33 30 30 30 30 30 30 30 30 30 52 00"  # esm_class … validity_period
    "01 00 08 00 08 05 00 03 07 02 01 06 33"  # registered_delivery … short_message
    "02 04 00 02 00 07"
)


def one(octets: bytes) -> Pdu:
    """The only PDU there is."""
    buffer = bytearray(octets)
    (pdu,) = frames(buffer)
    assert not buffer
    return pdu


def resumed(chunks: list[bytes]) -> list[Pdu]:
    buffer = bytearray()
    pdus: list[Pdu] = []
    for chunk in chunks:
        buffer += chunk
        pdus += frames(buffer)
    assert not buffer
    return pdus


def test_every_command_is_either_read_or_refused() -> None:
    assert {*BODIES, *WITHOUT_BODY, *NOT_UNDERSTOOD} == set(Command)


def test_a_bind_is_written_as_the_standard_shows_it() -> None:
    bind = Bind("SMPP3TEST", "secret08", "SUBMIT1", 0x34, Address(1, 1, ""))
    expected = bytes.fromhex(
        "0000002f 00000002 00000000 00000001"
        "534d50503354455354 00 7365637265743038 00 5355424d495431 00 34 01 01 00"
    )
    assert encode(Command.BIND_TRANSMITTER, 1, bind) == expected
    assert decode(one(expected)) == bind


def test_a_submit_sm_is_written_octet_by_octet() -> None:
    assert encode(Command.SUBMIT_SM, 7, MESSAGE) == MESSAGE_OCTETS
    assert decode(one(MESSAGE_OCTETS)) == MESSAGE


@pytest.mark.parametrize("command", BODIES, ids=lambda command: command.name.lower())
def test_what_is_written_is_read_again(command: Command) -> None:
    @settings(max_examples=40)
    @given(BODIES[command], sequences, octets)
    def check(body: Body, sequence: int, status: int) -> None:
        pdu = one(encode(command, sequence, body, status))
        assert (pdu.command, pdu.status, pdu.sequence) == (command, status, sequence)
        assert decode(pdu) == body

    check()


@pytest.mark.parametrize("command", WITHOUT_BODY, ids=lambda command: command.name.lower())
def test_what_has_no_body_is_a_header(command: Command) -> None:
    octets = encode(command, 5, status=8)
    assert len(octets) == 16
    assert decode(one(octets)) is None


# Framing


@given(st.lists(written, min_size=1, max_size=4), st.randoms(use_true_random=False))
def test_a_stream_may_be_cut_anywhere(pdus: list[bytes], random: Any) -> None:
    stream = b"".join(pdus)
    cuts = sorted(random.sample(range(len(stream) + 1), k=min(6, len(stream))))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert resumed(chunks) == [one(pdu) for pdu in pdus]


def test_one_octet_at_a_time_is_enough() -> None:
    stream = MESSAGE_OCTETS + encode(Command.ENQUIRE_LINK, 8)
    chunks = [bytes((octet,)) for octet in stream]
    assert [pdu.sequence for pdu in resumed(chunks)] == [7, 8]


def test_who_stops_early_finds_the_rest_in_the_buffer() -> None:
    buffer = bytearray(MESSAGE_OCTETS + encode(Command.ENQUIRE_LINK, 8))
    for pdu in frames(buffer):
        assert pdu.sequence == 7
        break
    assert [pdu.sequence for pdu in frames(buffer)] == [8]


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n",
        b"SSH-2.0-OpenSSH",
        b"\0\0\0\0",
        b"\0\0\0\x0f",
        (PDU_BYTES_MAX + 1).to_bytes(4, "big"),
        b"\xff\xff\xff\xff",
    ],
)
def test_an_impossible_length_loses_the_stream_after_the_pdus_before_it(garbage: bytes) -> None:
    buffer = bytearray(MESSAGE_OCTETS + garbage)
    read = frames(buffer)
    assert next(read).sequence == 7
    with pytest.raises(PduError) as caught:
        next(read)
    assert caught.value.lost
    assert caught.value.command_status == CommandStatus.ESME_RINVCMDLEN
    assert caught.value.sequence == 0
    assert buffer == garbage


def test_lengths_are_taken_from_16_octets_to_the_maximum() -> None:
    assert one(encode(Command.UNBIND, 1)).body == b""
    longest = (64).to_bytes(4, "big") + bytes(60)
    assert len(one(longest).body) == 48
    assert len(list(frames(bytearray(longest), pdu_bytes_max=64))) == 1
    with pytest.raises(PduError):
        list(frames(bytearray(longest), pdu_bytes_max=63))


def test_three_octets_are_waited_with() -> None:
    buffer = bytearray(b"HTT")
    assert list(frames(buffer)) == []


# What operators do


@pytest.mark.parametrize(
    ("body", "message_id"),
    [
        (b"", ""),
        (b"\0", ""),
        (b"abc", "abc"),
        (b"abc\0", "abc"),
        (b"abc\0\x00", "abc"),
        (b"\xfc\0", "ü"),
        (b"7" * 255 + b"\0", "7" * 255),
        (b"7" * 60_000, "7" * 255),
    ],
)
@pytest.mark.parametrize("status", [0, 8])
def test_a_response_always_tells_its_message_id(body: bytes, message_id: str, status: int) -> None:
    assert decode(Pdu(Command.SUBMIT_SM_RESP, status, 1, body)) == MessageId(message_id)


def test_the_tlvs_of_a_response_are_read() -> None:
    body = b"abc\0" + bytes.fromhex("0425 0001 02")
    assert decode(Pdu(Command.DATA_SM_RESP, 0xFE, 1, body)) == MessageId(
        "abc", {Tag.DELIVERY_FAILURE_REASON: b"\x02"}
    )


@pytest.mark.parametrize("length", range(8))
def test_a_response_may_end_anywhere(length: int) -> None:
    whole = b"abc\0\0\2\7"
    found = decode(Pdu(Command.QUERY_SM_RESP, 0, 1, whole[:length]))
    assert found == QueryResponse("abc"[:length], "", 2 * (length > 5), 7 * (length > 6))


def test_a_bind_that_is_refused_may_be_answered_without_a_body() -> None:
    assert decode(Pdu(Command.BIND_TRANSCEIVER_RESP, 0x0E, 1)) == BindResponse()


@pytest.mark.parametrize(
    "tail", ["00", "001e", "001e00", "001e0005", "001e000541", "001effff41424344", "00 001e0001 41"]
)
def test_tlvs_that_are_cut_short_end_the_list(tail: str) -> None:
    body = MESSAGE_OCTETS[16:] + bytes.fromhex(tail)
    assert decode(Pdu(Command.DELIVER_SM, 0, 1, body)) == MESSAGE


def test_a_payload_is_found_where_it_stands() -> None:
    assert MESSAGE.octets == MESSAGE.short_message
    assert ShortMessage(tlvs={Tag.MESSAGE_PAYLOAD: b"x"}).octets == b"x"
    assert ShortMessage().octets == b""


def test_a_short_message_of_255_octets_is_read_but_not_written() -> None:
    most = encode(Command.DELIVER_SM, 1, ShortMessage(short_message=b"x" * 254))
    body = bytearray(most[16:])
    assert body[-255] == 254
    body[-255] = 255
    message = decode(Pdu(Command.DELIVER_SM, 0, 1, bytes(body) + b"x"))
    assert isinstance(message, ShortMessage)
    assert message.short_message == b"x" * 255
    with pytest.raises(PduError):
        encode(Command.SUBMIT_SM, 1, message)


@pytest.mark.parametrize("length", range(len(MESSAGE_OCTETS) - 16 - 6))
def test_a_request_that_ends_too_early_is_answered_and_the_stream_goes_on(length: int) -> None:
    pdu = Pdu(Command.DELIVER_SM, 0, 9, MESSAGE_OCTETS[16 : 16 + length])
    with pytest.raises(PduError) as caught:
        decode(pdu)
    assert not caught.value.lost
    assert caught.value.sequence == 9
    assert caught.value.command_status == CommandStatus.ESME_RINVCMDLEN


def test_a_string_of_a_request_may_have_255_octets_and_no_more() -> None:
    for length, fits in ((255, True), (256, False)):
        body = b"\0" + b"\1\1" + b"9" * length + b"\0" + MESSAGE_OCTETS[24:-6]
        pdu = Pdu(Command.DELIVER_SM, 0, 1, body)
        if fits:
            message = decode(pdu)
            assert isinstance(message, ShortMessage)
            assert len(message.source.value) == length
        else:
            with pytest.raises(PduError):
                decode(pdu)


@pytest.mark.parametrize("command", [*NOT_UNDERSTOOD, 0x7777, 0x80007777, 0xFFFFFFFF])
def test_what_we_do_not_understand_has_a_status_of_its_own(command: int) -> None:
    with pytest.raises(PduError) as caught:
        decode(Pdu(command, 0, 3, b"anything"))
    assert caught.value.command_status == CommandStatus.ESME_RINVCMDID
    assert caught.value.sequence == 3
    assert not caught.value.lost


# What we are strict about


@pytest.mark.parametrize(
    ("command", "body", "status"),
    [
        (Command.BIND_TRANSCEIVER, Bind("x" * 16), CommandStatus.ESME_RINVSYSID),
        (Command.BIND_TRANSCEIVER, Bind("a\0b"), CommandStatus.ESME_RINVSYSID),
        (Command.BIND_TRANSCEIVER, Bind("سلام"), CommandStatus.ESME_RINVSYSID),
        (Command.BIND_TRANSCEIVER, Bind("x", "p" * 17), CommandStatus.ESME_RINVPASWD),
        (Command.BIND_TRANSCEIVER, Bind("x", "p", "t" * 13), CommandStatus.ESME_RINVSYSTYP),
        (Command.SUBMIT_SM, ShortMessage(service_type="123456"), CommandStatus.ESME_RINVSERTYP),
        (
            Command.SUBMIT_SM,
            ShortMessage(source=Address(5, 0, "€URO")),
            CommandStatus.ESME_RINVSRCADR,
        ),
        (
            Command.SUBMIT_SM,
            ShortMessage(destination=Address(1, 1, "9" * 21)),
            CommandStatus.ESME_RINVDSTADR,
        ),
        (
            Command.SUBMIT_SM,
            ShortMessage(destination=Address(1, 1, "98\n")),
            CommandStatus.ESME_RINVDSTADR,
        ),
        (Command.SUBMIT_SM, ShortMessage(validity_period="1"), CommandStatus.ESME_RINVEXPIRY),
        (
            Command.SUBMIT_SM,
            ShortMessage(schedule_delivery_time="0" * 17),
            CommandStatus.ESME_RINVSCHED,
        ),
        (
            Command.SUBMIT_SM,
            ShortMessage(short_message=b"x" * 255),
            CommandStatus.ESME_RINVMSGLEN,
        ),
        (
            Command.SUBMIT_SM,
            ShortMessage(short_message=b"x", tlvs={Tag.MESSAGE_PAYLOAD: b"x"}),
            CommandStatus.ESME_RINVMSGLEN,
        ),
        (Command.DATA_SM, ShortMessage(short_message=b"x"), CommandStatus.ESME_RINVMSGLEN),
        (Command.SUBMIT_SM_RESP, MessageId("7" * 65), CommandStatus.ESME_RINVMSGID),
        (Command.CANCEL_SM, Cancel(message_id="7" * 65), CommandStatus.ESME_RINVMSGID),
        (Command.SUBMIT_SM, ShortMessage(esm_class=256), CommandStatus.ESME_RINVCMDLEN),
        (Command.SUBMIT_SM, ShortMessage(esm_class=-1), CommandStatus.ESME_RINVCMDLEN),
        (Command.SUBMIT_SM, ShortMessage(esm_class=1 << 99), CommandStatus.ESME_RINVCMDLEN),
        (Command.SUBMIT_SM, ShortMessage(tlvs={1: bytes(65_536)}), CommandStatus.ESME_RINVCMDLEN),
        (Command.SUBMIT_SM, ShortMessage(tlvs={65_536: b""}), CommandStatus.ESME_RINVCMDLEN),
    ],
)
def test_what_the_standard_does_not_allow_is_not_written(
    command: Command, body: Body, status: CommandStatus
) -> None:
    with pytest.raises(PduError) as caught:
        encode(command, 4, body)
    assert caught.value.command_status == status
    assert not caught.value.lost


def test_a_sequence_number_that_is_no_number_is_not_written() -> None:
    with pytest.raises(PduError):
        encode(Command.ENQUIRE_LINK, -1)


def test_an_error_repeats_neither_a_password_nor_a_number() -> None:
    for body in (Bind("x", "hunter2" * 3), ShortMessage(destination=Address(1, 1, "9" * 30))):
        command = Command.BIND_RECEIVER if isinstance(body, Bind) else Command.SUBMIT_SM
        with pytest.raises(PduError) as caught:
            encode(command, 1, body)
        assert "hunter2" not in str(caught.value)
        assert "999" not in str(caught.value)


def test_what_is_logged_shows_no_password_text_or_number() -> None:
    shown = repr([Bind("me", "hunter2"), Outbind("me", "hunter2"), MESSAGE, one(MESSAGE_OCTETS)])
    assert "hunter2" not in shown
    assert "989121234567" not in shown
    assert "short_message" not in shown
    assert "\\x063" not in shown


# Answers


@pytest.mark.parametrize(
    ("command", "length"),
    [
        (Command.DELIVER_SM, 17),
        (Command.DATA_SM, 17),
        (Command.ENQUIRE_LINK, 16),
        (Command.UNBIND, 16),
    ],
)
@pytest.mark.parametrize("status", [0, 8])
def test_a_request_is_answered_by_its_response(command: Command, length: int, status: int) -> None:
    octets = answer(Pdu(command, 0, 77), status)
    assert len(octets) == length
    pdu = one(octets)
    assert (pdu.command, pdu.status, pdu.sequence) == (command | RESPONSE, status, 77)
    assert decode(pdu) in (None, MessageId(""))


@pytest.mark.parametrize(
    "command", [Command.SUBMIT_SM, Command.QUERY_SM, Command.BIND_RECEIVER, 0x21, 0x7777]
)
def test_what_an_smsc_must_not_ask_is_answered_by_a_generic_nack(command: int) -> None:
    pdu = one(answer(Pdu(command, 0, 77)))
    assert (pdu.command, pdu.status, pdu.sequence) == (
        Command.GENERIC_NACK,
        CommandStatus.ESME_RINVCMDID,
        77,
    )


@pytest.mark.parametrize(
    "command",
    [*UNANSWERED, Command.GENERIC_NACK, Command.SUBMIT_SM_RESP, 0x80007777],
)
def test_what_is_owed_no_answer_gets_none(command: int) -> None:
    assert answer(Pdu(command, 0, 77)) == b""


def test_a_generic_nack_may_be_written_for_what_could_not_be_read() -> None:
    assert one(nack(0, CommandStatus.ESME_RINVCMDLEN)) == Pdu(Command.GENERIC_NACK, 2, 0)


def test_sequence_numbers_start_again_after_the_last_one() -> None:
    assert next_sequence(0) == 1
    assert next_sequence(1) == 2
    assert next_sequence(SEQUENCE_MAX - 1) == SEQUENCE_MAX
    assert next_sequence(SEQUENCE_MAX) == 1


def test_a_pdu_has_a_name() -> None:
    assert Pdu(Command.SUBMIT_SM_RESP, 0, 1).name == "submit_sm_resp"
    assert Pdu(0x7777, 0, 1).name == "0x00007777"


# Whatever comes


def faults(octets: bytes) -> list[tuple[Pdu | None, PduError]]:
    """Read as a link does; whatever is raised and is no PduError passes."""
    buffer = bytearray(octets)
    raised: list[tuple[Pdu | None, PduError]] = []
    try:
        for pdu in frames(buffer):
            answer(pdu)
            try:
                repr(decode(pdu))
            except PduError as error:
                raised.append((pdu, error))
    except PduError as error:
        raised.append((None, error))
    return raised


def read_all(octets: bytes) -> None:
    for pdu, error in faults(octets):
        assert error.lost is (pdu is None)
        if pdu is not None:
            assert error.sequence == pdu.sequence
            unknown = error.command_status == CommandStatus.ESME_RINVCMDID
            assert unknown or pdu.command < RESPONSE, "a response always decodes"


@given(st.binary(max_size=400))
def test_random_octets_raise_nothing_else(octets: bytes) -> None:
    read_all(octets)


@given(st.sampled_from(Command), st.binary(max_size=300))
@example(Command.DELIVER_SM, b"")
@example(Command.QUERY_SM_RESP, b"a")
def test_random_bodies_raise_nothing_else(command: int, body: bytes) -> None:
    header = b"".join(part.to_bytes(4, "big") for part in (16 + len(body), command, 0, 1))
    read_all(header + body)


@given(written, st.lists(st.tuples(st.integers(0, 2_000), octets), max_size=4), st.integers(0, 60))
def test_mutated_pdus_raise_nothing_else(
    octets: bytes, changes: list[tuple[int, int]], cut: int
) -> None:
    mutated = bytearray(octets)
    for position, octet in changes:
        mutated[position % len(mutated)] = octet
    read_all(bytes(mutated))
    shorter = mutated[: max(16, len(mutated) - cut)]
    shorter[:4] = len(shorter).to_bytes(4, "big")
    read_all(bytes(shorter) + octets)


# Independent readers


@pytest.mark.skipif(find_spec("smpp34") is None, reason="no smpp34: pip install it, an oracle")
@given(short_messages.filter(lambda message: message.short_message), sequences)
def test_another_library_reads_what_we_write_and_we_read_what_it_writes(
    message: ShortMessage, sequence: int
) -> None:
    import smpp34

    theirs = smpp34.decode(encode(Command.SUBMIT_SM, sequence, message))
    assert theirs.sequence_number == sequence
    assert (theirs.source_addr_ton, theirs.source_addr_npi) == message.source[:2]
    assert (theirs.dest_addr_ton, theirs.dest_addr_npi) == message.destination[:2]
    for name in ("esm_class", "data_coding", "registered_delivery", "protocol_id", "priority_flag"):
        assert getattr(theirs, name) == getattr(message, name)
    assert theirs.short_message == message.short_message
    assert theirs.validity_period == message.validity_period
    assert theirs.schedule_delivery_time == message.schedule_delivery_time
    assert theirs.replace_if_present_flag == message.replace_if_present
    assert theirs.sm_default_msg_id == message.default_message_id
    assert {tlv.tag: tlv.value for tlv in theirs.tlvs} == message.tlvs
    if message.source.value.isascii() and message.destination.value.isascii():
        assert theirs.source_addr == message.source.value
        assert theirs.destination_addr == message.destination.value
        if message.service_type.isascii():
            again = one(theirs.encode())
            assert again.sequence == sequence
            assert decode(again) == message


TSHARK = shutil.which("tshark")
TEXT2PCAP = shutil.which("text2pcap")
FIELDS = [
    "smpp.command_id",
    "smpp.command_status",
    "smpp.sequence_number",
    "smpp.system_id",
    "smpp.source_addr",
    "smpp.destination_addr",
    "smpp.esm.submit.features",
    "smpp.data_coding",
    "smpp.validity_period_r",
    "smpp.message_id",
    "smpp.sar_msg_ref_num",
    "smpp.sar_total_segments",
    "smpp.sar_segment_seqnum",
    "smpp.message_payload",
    "smpp.receipted_message_id",
    "smpp.message_state",
    "gsm_sms.udh.mm.msg_id",
    "gsm_sms.udh.mm.msg_parts",
    "gsm_sms.udh.mm.msg_part",
    "gsm_sms_ud.short_msg",
    "_ws.malformed",
]


def dissected(pdus: list[bytes], folder: Path) -> list[dict[str, str]]:
    """What Wireshark reads in PDUs that each arrive in a packet of their own."""
    assert TSHARK is not None
    assert TEXT2PCAP is not None
    dump = "".join(
        "".join(
            f"{offset:06x} {pdu[offset : offset + 16].hex(' ')}\n"
            for offset in range(0, len(pdu), 16)
        )
        + "\n"
        for pdu in pdus
    )
    (folder / "pdus.txt").write_text(dump)
    subprocess.run(
        [TEXT2PCAP, "-q", "-T", "40000,2775", folder / "pdus.txt", folder / "pdus.pcap"],
        check=True,
        capture_output=True,
    )
    shown = subprocess.run(
        [TSHARK, "-r", folder / "pdus.pcap", "-T", "fields", "-E", "separator=|"]
        + [argument for name in FIELDS for argument in ("-e", name)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    return [
        {name: value for name, value in zip(FIELDS, line.split("|"), strict=True) if value}
        for line in shown.splitlines()
    ]


def submits(text: str, method: Any) -> list[bytes]:
    return [
        encode(
            Command.SUBMIT_SM,
            number,
            ShortMessage(
                source("ACME"),
                destination("+989121234567"),
                segment.esm_class,
                segment.data_coding,
                1,
                short_message=segment.short_message,
                validity_period=validity_period(86_400.5),
                tlvs=segment.tlvs,
            ),
        )
        for number, segment in enumerate(segments(text, 0x1234, method), 1)
    ]


@pytest.mark.skipif(
    TSHARK is None or TEXT2PCAP is None, reason="no tshark: apt install tshark, an oracle"
)
class TestWireshark:
    def test_it_reads_long_texts_in_every_way_of_cutting(self, tmp_path: Path) -> None:
        persian = "سلام 🚀 " * 20
        udh = submits(persian, "udh")
        sar = submits("{}" * 100, "sar")
        payload = submits("x" * 200, "payload")
        shown = dissected([*udh, *sar, *payload], tmp_path)
        assert len(shown) == len(udh) + len(sar) + 1
        for read in shown:
            assert "_ws.malformed" not in read
            assert int(read["smpp.command_id"], 16) == Command.SUBMIT_SM
            assert read["smpp.source_addr"] == "ACME"
            assert read["smpp.destination_addr"] == "989121234567"
            assert float(read["smpp.validity_period_r"]) == 86_400
        for number, read in enumerate(shown[: len(udh)], 1):
            assert int(read["smpp.esm.submit.features"], 16) == 1
            assert int(read["smpp.data_coding"], 16) == 8
            assert read["gsm_sms.udh.mm.msg_id"] == str(0x34)
            assert read["gsm_sms.udh.mm.msg_parts"] == str(len(udh))
            assert read["gsm_sms.udh.mm.msg_part"] == str(number)
        whole = shown[len(udh) - 1]["gsm_sms_ud.short_msg"]
        assert bytes.fromhex(whole).decode("utf-16-be") == persian
        for number, read in enumerate(shown[len(udh) : -1], 1):
            assert int(read["smpp.sar_msg_ref_num"], 0) == 0x1234
            assert read["smpp.sar_total_segments"] == str(len(sar))
            assert read["smpp.sar_segment_seqnum"] == str(number)
        assert bytes.fromhex(shown[-1]["smpp.message_payload"]) == b"x" * 200

    def test_it_reads_every_other_pdu(self, tmp_path: Path) -> None:
        receipt = ShortMessage(
            esm_class=4,
            short_message=b"id:1 stat:DELIVRD",
            tlvs={Tag.RECEIPTED_MESSAGE_ID: b"1\0", Tag.MESSAGE_STATE: b"\2"},
        )
        shown = dissected(
            [
                encode(Command.BIND_TRANSCEIVER, 1, Bind("system", "secret", "type")),
                encode(Command.BIND_TRANSCEIVER_RESP, 1, BindResponse("smsc", {0x210: b"\x34"})),
                encode(Command.SUBMIT_SM_RESP, 2, MessageId("id-7")),
                encode(Command.DELIVER_SM, 3, receipt),
                answer(Pdu(Command.DELIVER_SM, 0, 3)),
                encode(Command.QUERY_SM, 4, Query("id-7", Address(1, 1, "98"))),
                encode(Command.CANCEL_SM, 5, Cancel("", "id-7")),
                encode(Command.ENQUIRE_LINK, 6),
                nack(7, CommandStatus.ESME_RINVCMDID),
                encode(Command.UNBIND, 8),
            ],
            tmp_path,
        )
        assert not any("_ws.malformed" in read for read in shown)
        assert [int(read["smpp.sequence_number"]) for read in shown] == [
            1,
            1,
            2,
            3,
            3,
            4,
            5,
            6,
            7,
            8,
        ]
        assert shown[0]["smpp.system_id"] == "system"
        assert shown[1]["smpp.system_id"] == "smsc"
        assert shown[2]["smpp.message_id"] == "id-7"
        assert shown[3]["smpp.receipted_message_id"] == "1"
        assert shown[3]["smpp.message_state"] == "2"
        assert shown[5]["smpp.message_id"] == "id-7"
        assert int(shown[8]["smpp.command_status"], 16) == CommandStatus.ESME_RINVCMDID
