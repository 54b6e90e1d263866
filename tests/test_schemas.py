"""What a body may be, and that whatever else comes in is refused by name (schemas, parsing)."""

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsgw.api.parsing import (
    ERRORS_MAX,
    FIELDS_MAX,
    batch_items,
    parse,
    query,
    reads,
    unix_ms,
    uuid_in_path,
)
from smsgw.api.problems import problem
from smsgw.api.schemas import (
    BATCH_ITEMS_MAX,
    BatchItem,
    BatchRequest,
    Body,
    CancelRequest,
    ClientCreate,
    CreditAdjust,
    MessageRequest,
    PauseRequest,
    PreviewRequest,
    ReceiptRequest,
    VerifyRequest,
)
from smsgw.errors import InvalidId, InvalidRequest, MalformedRequest, SmsgwError
from smsgw.text import refuse_text

CLIENT = "550e8400-e29b-41d4-a716-446655440000"
MESSAGE = {"client_id": CLIENT, "to": "+15005550006", "from": "ACME", "text": "Hello"}
REQUESTS = (
    MessageRequest,
    PreviewRequest,
    BatchRequest,
    VerifyRequest,
    CancelRequest,
    ReceiptRequest,
    ClientCreate,
    CreditAdjust,
    PauseRequest,
)


def names(model: type[Body]) -> set[str]:
    """The names of a model's fields, as clients write them."""
    return {field.alias or name for name, field in model.model_fields.items()}


def body(**changes: Any) -> bytes:
    return json.dumps({**MESSAGE, **changes}).encode()


def with_raw(name: str, raw: bytes) -> bytes:
    """The usual message with a field whose value is written as it stands."""
    return json.dumps(MESSAGE).encode()[:-1] + b',"%b":%b}' % (name.encode(), raw)


def wrong(model: type[Body], content: bytes) -> dict[str, str]:
    """The fields that a refusal names, with what it says about each."""
    with pytest.raises(InvalidRequest) as caught:
        parse(model, content)
    return by_field(caught.value)


def by_field(refusal: InvalidRequest) -> dict[str, str]:
    fields = refusal.members["fields"]
    first = fields[0]
    assert refusal.detail == f"{first['field']} {first['message']}."
    return {each["field"]: each["message"] for each in fields}


# One message


def test_a_message_is_read_with_all_its_fields() -> None:
    request = parse(
        MessageRequest,
        body(
            otp=False,
            express=True,
            reference="order-17",
            validity_s=3600,
            send_at="2026-11-23T12:00:00.250Z",
        ),
    )
    assert request.client_id == UUID(CLIENT)
    assert (request.to, request.sender, request.text) == ("+15005550006", "ACME", "Hello")
    assert (request.otp, request.express) == (False, True)
    assert (request.reference, request.validity_s) == ("order-17", 3600)
    assert request.send_at == datetime(2026, 11, 23, 12, 0, 0, 250_000, UTC)


def test_null_is_the_same_as_leaving_an_optional_field_out() -> None:
    optional = ("text", "otp", "express", "reference", "validity_s", "send_at")
    given_as_null = parse(MessageRequest, body(**dict.fromkeys(optional)))
    without = {field: value for field, value in MESSAGE.items() if field not in optional}
    left_out = parse(MessageRequest, json.dumps(without).encode())
    assert given_as_null.model_dump() == left_out.model_dump()
    assert given_as_null.otp is False
    assert given_as_null.express is False


@pytest.mark.parametrize(
    ("field", "raw", "says"),
    [
        ("client_id", b"null", "must be a string"),
        ("client_id", b"1", "must be a string"),
        ("client_id", b'""', "must be a UUID"),
        ("client_id", b'"550e8400"', "must be a UUID"),
        ("client_id", b'"550e8400e29b41d4a716446655440000"', "must be a UUID"),
        ("client_id", b'"{550e8400-e29b-41d4-a716-446655440000}"', "must be a UUID"),
        ("client_id", b'"urn:uuid:550e8400-e29b-41d4-a716-446655440000"', "must be a UUID"),
        ("client_id", rb'"550e8400-e29b-41d4-a716-446655440000\n"', "must be a UUID"),
        ("client_id", b'"g50e8400-e29b-41d4-a716-446655440000"', "must be a UUID"),
        ("to", b"null", "must be a string"),
        ("to", b"15005550006", "must be a string"),
        ("to", b'["+15005550006"]', "must be a string"),
        ("from", b"12345", "must be a string"),
        ("text", b"5", "must be a string"),
        ("text", b"{}", "must be a string"),
        ("otp", b'"true"', "must be true or false"),
        ("otp", b"1", "must be true or false"),
        ("otp", b"0", "must be true or false"),
        ("express", b'""', "must be true or false"),
        ("reference", b"17", "must be a string"),
        ("reference", b'"%b"' % (b"x" * 65), "must have at most 64 characters"),
        ("reference", rb'"a\u0000b"', "must not contain NUL (U+0000)"),
        ("validity_s", b'"60"', "must be an integer"),
        ("validity_s", b"true", "must be an integer"),
        ("validity_s", b"60.0", "must be an integer"),
        ("validity_s", b"6e2", "must be an integer"),
        ("validity_s", b"1e400", "must be an integer"),
        ("validity_s", b"NaN", "must be an integer"),
        ("validity_s", b"-Infinity", "must be an integer"),
        ("validity_s", b"59", "must be at least 60"),
        ("validity_s", b"-0", "must be at least 60"),
        ("validity_s", b"604801", "must be at most 604800"),
        ("validity_s", b"9" * 400, "must be at most 604800"),
        ("sender", b'"ACME"', "is not a field of this request"),
        ("reference ", b'"x"', "is not a field of this request"),
        ("Reference", b'"x"', "is not a field of this request"),
        ("callback", b"[[[[1]]]]", "is not a field of this request"),
    ],
)
def test_a_wrong_field_is_named_as_the_client_wrote_it(field: str, raw: bytes, says: str) -> None:
    assert wrong(MessageRequest, with_raw(field, raw)) == {field: says}


@pytest.mark.parametrize("field", ["client_id", "to", "from"])
def test_a_required_field_is_missed(field: str) -> None:
    content = {name: value for name, value in MESSAGE.items() if name != field}
    assert wrong(MessageRequest, json.dumps(content).encode()) == {field: "is required"}


def test_all_wrong_fields_are_named_at_once() -> None:
    said = wrong(MessageRequest, b'{"client_id":"x","to":1,"otp":1,"color":"red"}')
    assert list(said) == ["client_id", "to", "from", "otp", "color"]


@pytest.mark.parametrize("validity_s", [60, 604_800])
def test_the_bounds_of_the_validity_are_allowed(validity_s: int) -> None:
    assert parse(MessageRequest, body(validity_s=validity_s)).validity_s == validity_s


def test_a_reference_is_counted_in_characters_not_in_bytes() -> None:
    assert parse(MessageRequest, body(reference="😀" * 64)).reference == "😀" * 64


def test_an_id_may_be_in_capitals() -> None:
    assert parse(MessageRequest, body(client_id=CLIENT.upper())).client_id == UUID(CLIENT)


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-23T12:00:00Z", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("2026-11-23t12:00:00z", datetime(2026, 11, 23, 12, tzinfo=UTC)),
        ("2026-11-23T12:00:00.5Z", datetime(2026, 11, 23, 12, 0, 0, 500_000, UTC)),
        ("2026-11-23T12:00:00.123456789Z", datetime(2026, 11, 23, 12, 0, 0, 123_456, UTC)),
        (
            "2026-11-23T12:00:00+03:30",
            datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=3, minutes=30))),
        ),
        ("0001-01-01T00:00:00+14:00", datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))),
    ],
)
def test_a_time_is_read_with_its_zone(text: str, moment: datetime) -> None:
    send_at = parse(MessageRequest, body(send_at=text)).send_at
    assert send_at == moment
    assert send_at is not None
    assert send_at.utcoffset() == moment.utcoffset()


@pytest.mark.parametrize(
    "value",
    [
        "2026-11-23T12:00:00",
        "2026-11-23T12:00Z",
        "2026-11-23",
        "2026-11-23 12:00:00Z",
        "2026-11-23_12:00:00Z",
        "2026-11-23T12:00:00+0330",
        "2026-11-23T12:00:00+03",
        "2026-11-23T12:00:00.Z",
        "2026-11-23T12:00:00Z\n",
        "2026-11-23T24:00:00Z",
        "2026-11-23T23:59:60Z",
        "2026-02-30T12:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-11-23T12:00:00+99:00",
        "۲۰۲۶-۱۱-۲۳T12:00:00Z",
        "1795435200",
        "P1D",
        "",
        1_795_435_200,
        1_795_435_200.5,
        True,
        [],
    ],
)
def test_what_is_no_time_with_a_zone_is_refused(value: Any) -> None:
    says = "must be a time with a zone, as in 2026-11-23T12:00:00.000Z"
    assert wrong(MessageRequest, body(send_at=value)) == {"send_at": says}


def test_milliseconds_are_exact_where_a_float_is_not() -> None:
    moment = datetime(2026, 11, 23, 12, 0, 0, 1000, UTC)
    for offset_ms in range(1000):
        later = moment + timedelta(milliseconds=offset_ms)
        assert unix_ms(later) == unix_ms(moment) + offset_ms
    assert unix_ms(datetime(1970, 1, 1, tzinfo=UTC)) == 0
    assert unix_ms(datetime(1969, 12, 31, 23, 59, 59, 999_999, UTC)) == -1
    assert unix_ms(datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))) < 0


# Bodies that are no request at all


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b" \n",
        b"{",
        b"nonsense",
        b"{'to':1}",
        json.dumps(MESSAGE).encode() + b"x",
        json.dumps(MESSAGE).encode() + b"{}",
        b"\xef\xbb\xbf" + json.dumps(MESSAGE).encode(),
        json.dumps(MESSAGE).encode("utf-16"),
        with_raw("reference", b'"\xff"'),
        with_raw("reference", b'"\xed\xa0\xbd"'),
        with_raw("reference", b'"a\nb"'),
        with_raw("reference", rb'"\x41"'),
        with_raw("validity_s", b"060"),
        with_raw("validity_s", b"9" * 5000),
        with_raw("validity_s", b"nan"),
        with_raw("callback", b"[" * 100_000 + b"]" * 100_000),
        with_raw("callback", b'{"a":' * 5000 + b"1" + b"}" * 5000),
        b"[" * 100_000,
        with_raw("reference", rb'"\ud83d"')[:-1],
        with_raw("reference", rb'"\ud83d'),
        with_raw("reference", rb'["\ud83d",' + b"[" * 100_000 + b"]" * 100_001),
        with_raw("reference", rb'["\ud83d",' + b"9" * 5000 + b"]"),
        rb'"\ud83d" \ud83d',
    ],
)
def test_what_is_not_json_is_malformed(content: bytes) -> None:
    with pytest.raises(MalformedRequest):
        parse(MessageRequest, content)


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"x"', b"true", b"NaN", rb'"\ud83d"'])
@pytest.mark.parametrize("model", REQUESTS)
def test_a_body_is_an_object(model: type[Body], content: bytes) -> None:
    assert wrong(model, content) == {"body": "must be a JSON object"}


def test_of_repeated_fields_the_last_one_counts() -> None:
    assert parse(MessageRequest, with_raw("text", b'"second"')).text == "second"


# Surrogates


def test_a_pair_of_surrogates_is_one_character() -> None:
    assert parse(MessageRequest, with_raw("reference", rb'"\ud83d\ude00"')).reference == "😀"


def test_a_written_backslash_makes_no_surrogate() -> None:
    assert parse(MessageRequest, with_raw("reference", rb'"\\ud83d"')).reference == "\\ud83d"


@pytest.mark.parametrize("raw", [rb'"\ud83d"', rb'"\udE00"', rb'"a\uDBFFb"', rb'"\ud83d\ud83d"'])
def test_a_lone_surrogate_is_a_wrong_field_like_others(raw: bytes) -> None:
    says = "must not contain lone surrogates (U+D800 to U+DFFF)"
    assert wrong(MessageRequest, with_raw("reference", raw)) == {"reference": says}


def test_a_lone_surrogate_in_a_text_is_left_to_the_rules_of_texts() -> None:
    request = parse(MessageRequest, with_raw("text", rb'"\ud83d"'))
    assert request.text == "\ud83d"
    assert refuse_text(request.text) is not None


def test_a_lone_surrogate_in_a_name_is_refused() -> None:
    says = "must not contain lone surrogates (U+D800 to U+DFFF)"
    assert wrong(MessageRequest, with_raw(r"\ud83d", b"1")) == {"body": says}


def test_the_other_fields_are_judged_as_strictly_beside_a_surrogate() -> None:
    content = rb'{"client_id":"%b","to":1,"from":"\ud83d","otp":1,"validity_s":60.0,"x":NaN}'
    assert wrong(MessageRequest, content % CLIENT.encode()) == {
        "to": "must be a string",
        "otp": "must be true or false",
        "validity_s": "must be an integer",
        "x": "is not a field of this request",
    }


# What refusals say


def test_no_value_comes_back_with_a_refusal() -> None:
    canary = "4711canary"
    fields = ("client_id", "to", "from", "text", "otp", "express", "reference", "validity_s")
    values: dict[str, Any] = {field: {"secret": canary} for field in fields}
    values |= {"client_id": canary, "reference": canary * 10, "send_at": canary, "color": canary}
    content = json.dumps(values).encode()
    for broken in (content, content[:-1], content.replace(b"4711", rb"\ud83d")):
        with pytest.raises(SmsgwError) as caught:
            parse(MessageRequest, broken)
        assert b"canary" not in problem(caught.value)[1]
        assert caught.value.__context__ is None or "canary" not in str(caught.value.__context__)


def test_a_refusal_names_a_bounded_number_of_fields_with_bounded_names() -> None:
    names = [f"{number:03}{'x' * 200}" for number in range(FIELDS_MAX + 10)]
    said = wrong(MessageRequest, body(**dict.fromkeys(names, 1)))
    assert len(said) == FIELDS_MAX
    assert all(len(name) == 64 for name in said)


def test_very_many_wrong_fields_are_not_looked_at_one_by_one() -> None:
    names = [f"x{number}" for number in range(ERRORS_MAX + 1)]
    said = wrong(MessageRequest, body(**dict.fromkeys(names, 1)))
    assert said == {"body": f"has more than {ERRORS_MAX} wrong fields"}


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=8)
    | st.sampled_from([CLIENT, "+15005550006", "2026-11-23T12:00:00Z"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = st.sampled_from([*sorted({name for model in REQUESTS for name in names(model)}), "\ud83d"])


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(REQUESTS), st.dictionaries(FIELDS, JSON_VALUES, max_size=6))
def test_any_json_object_is_a_request_or_a_refusal(
    model: type[Body], content: dict[str, Any]
) -> None:
    try:
        request = parse(model, json.dumps(content).encode())
        if isinstance(request, BatchRequest):
            for item in batch_items(request, 10):
                assert isinstance(item, BatchItem) or by_field(item)
    except InvalidRequest as refusal:
        by_field(refusal)
        json.loads(problem(refusal)[1])
        json.dumps(refusal.members, ensure_ascii=False).encode()


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(REQUESTS), st.binary(max_size=40), st.integers(0, 120))
def test_any_bytes_are_a_request_or_a_refusal(
    model: type[Body], noise: bytes, position: int
) -> None:
    usual = json.dumps(MESSAGE | {"reference": "\ud83d"}).encode()
    for content in (noise, usual[:position] + noise + usual[position:]):
        try:
            parse(model, content)
        except (InvalidRequest, MalformedRequest) as refusal:
            json.loads(problem(refusal)[1])


# Batches


def batch(items_max: int = 10, **content: Any) -> list[Any]:
    """What becomes of each item: the item, or the fields that are wrong with it."""
    request = parse(BatchRequest, json.dumps({"client_id": CLIENT, **content}).encode())
    return [
        item if isinstance(item, BatchItem) else by_field(item)
        for item in batch_items(request, items_max)
    ]


ITEM = {"to": "+15005550006", "from": "ACME", "text": "Hello"}


def test_a_bad_item_is_rejected_alone() -> None:
    results = batch(
        items_max=20,
        messages=[
            ITEM,
            {**ITEM, "colour": "red"},
            {**ITEM, "otp": True},
            {**ITEM, "otp": None},
            {**ITEM, "to": 1},
            {**ITEM, "reference": "\ud83d"},
            {**ITEM, "\ud83d": 1},
            {**ITEM, "send_at": "tomorrow"},
            {"to": "+15005550006"},
            [],
            None,
            7,
            {**ITEM, "reference": "last", "express": True},
        ],
    )
    assert results[0] == BatchItem.model_validate(ITEM)
    assert results[1] == {"colour": "is not a field of this request"}
    assert results[2] == results[3] == {"otp": "is not a field of this request"}
    assert results[4] == {"to": "must be a string"}
    assert list(results[5]) == ["reference"]
    assert list(results[6]) == ["body"]
    assert list(results[7]) == ["send_at"]
    assert results[8] == {"from": "is required", "text": "is required"}
    assert results[9] == results[10] == results[11] == {"body": "must be a JSON object"}
    assert (results[12].reference, results[12].express) == ("last", True)


def test_what_is_said_for_all_holds_where_an_item_says_nothing() -> None:
    defaults = {"from": "ACME", "text": "Hello", "express": True, "validity_s": 60}
    at = "2026-11-23T12:00:00Z"
    own = {"from": "B", "text": "Own", "express": False, "validity_s": 90, "send_at": at}
    silent, nulls, different = batch(
        **defaults,
        send_at="2026-11-24T12:00:00Z",
        messages=[{"to": "1"}, {"to": "2"} | dict.fromkeys(own), {"to": "3", **own}],
    )
    for item in (silent, nulls):
        assert (item.sender, item.text, item.express, item.validity_s) == (
            "ACME",
            "Hello",
            True,
            60,
        )
        assert item.send_at == datetime(2026, 11, 24, 12, tzinfo=UTC)
    assert (different.sender, different.text) == ("B", "Own")
    assert (different.express, different.validity_s) == (False, 90)
    assert different.send_at == datetime(2026, 11, 23, 12, tzinfo=UTC)


def test_a_null_that_is_no_default_is_still_an_unknown_field() -> None:
    (rejected,) = batch(text="Hello", messages=[{**ITEM, "otp": None}])
    assert rejected == {"otp": "is not a field of this request"}


def test_one_text_goes_to_many() -> None:
    first, second, third = batch(**{"from": "ACME"}, text="Hello", to=["+15005550006", 5, "x"])
    assert first == BatchItem.model_validate(ITEM)
    assert second == {"to": "must be a string"}
    assert third.to == "x"


@pytest.mark.parametrize(
    ("content", "field", "says"),
    [
        ({}, "messages", "is required, or to"),
        ({"messages": None, "to": None}, "messages", "is required, or to"),
        ({"messages": [ITEM], "to": ["x"]}, "to", "must not be given together with messages"),
        ({"messages": []}, "messages", "must not be empty"),
        ({"to": []}, "to", "must not be empty"),
        ({"messages": [ITEM] * 11}, "messages", "must have at most 10 items"),
        ({"to": ["x"] * 11}, "to", "must have at most 10 items"),
        ({"messages": ITEM}, "messages", "must be a list"),
        ({"to": "+15005550006"}, "to", "must be a list"),
        ({"messages": [ITEM], "otp": True}, "otp", "is not a field of this request"),
        ({"messages": [ITEM], "reference": "x"}, "reference", "is not a field of this request"),
        ({"messages": [ITEM], "text": 1}, "text", "must be a string"),
        ({"messages": [ITEM], "all_or_nothing": 1}, "all_or_nothing", "must be true or false"),
    ],
)
def test_a_wrong_envelope_refuses_the_batch(content: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        batch(**content)
    assert by_field(caught.value) == {field: says}


def test_as_many_items_as_allowed_are_taken() -> None:
    assert len(batch(items_max=10, messages=[ITEM] * 10)) == 10


def test_no_more_items_are_looked_at_than_any_setting_allows() -> None:
    content = b'{"client_id":"%b","to":[%b0]}' % (CLIENT.encode(), b"0," * BATCH_ITEMS_MAX)
    assert wrong(BatchRequest, content) == {"to": f"must have at most {BATCH_ITEMS_MAX} items"}


# The other bodies


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"provider_message_id": "7", "status": "DELIVRD"}, None),
        (
            {"provider_message_id": "7", "status": "x", "reason": None, "timestamp": "today"},
            None,
        ),
        ({"provider_message_id": 7, "status": "DELIVRD"}, "provider_message_id"),
        ({"provider_message_id": "", "status": "DELIVRD"}, "provider_message_id"),
        ({"provider_message_id": "x" * 256, "status": "DELIVRD"}, "provider_message_id"),
        ({"provider_message_id": "7", "status": ""}, "status"),
        ({"provider_message_id": "7", "status": "x" * 65}, "status"),
        ({"provider_message_id": "7", "status": "x\0"}, "status"),
        ({"provider_message_id": "7", "status": "\ud83d"}, "status"),
        ({"provider_message_id": "7", "status": "x", "timestamp": True}, "timestamp"),
        ({"provider_message_id": "7", "status": "x", "smsc": "a"}, "smsc"),
    ],
)
def test_a_receipt_is_read_strictly(content: dict[str, Any], said: str | None) -> None:
    raw = json.dumps(content).encode()
    if said is None:
        assert parse(ReceiptRequest, raw).status == content["status"]
    else:
        assert list(wrong(ReceiptRequest, raw)) == [said]


@pytest.mark.parametrize("code", [None, 493_817, "", "4" * 65, "49\0", "\ud83d"])
def test_a_code_to_verify_is_a_short_text(code: object) -> None:
    content = json.dumps({"client_id": CLIENT, "to": "+15005550006", "code": code}).encode()
    assert list(wrong(VerifyRequest, content)) == ["code"]


def test_a_new_client_has_no_credit_and_weight_one() -> None:
    for content in (b'{"name":"A"}', b'{"name":"A","credit_cents":null,"weight":null,"id":null}'):
        client = parse(ClientCreate, content)
        assert (client.credit_cents, client.weight, client.id) == (0, 1, None)


@pytest.mark.parametrize(
    ("model", "content", "field"),
    [
        (ClientCreate, {"name": ""}, "name"),
        (ClientCreate, {"name": "x" * 201}, "name"),
        (ClientCreate, {"name": "x\x1b"}, "name"),
        (ClientCreate, {"name": "x", "id": "x"}, "id"),
        (ClientCreate, {"name": "x", "credit_cents": -1}, "credit_cents"),
        (ClientCreate, {"name": "x", "credit_cents": 10**15 + 1}, "credit_cents"),
        (ClientCreate, {"name": "x", "credit_cents": False}, "credit_cents"),
        (ClientCreate, {"name": "x", "weight": 0}, "weight"),
        (ClientCreate, {"name": "x", "weight": 1001}, "weight"),
        (CreditAdjust, {"amount_cents": 0}, "amount_cents"),
        (CreditAdjust, {"amount_cents": 10**15 + 1}, "amount_cents"),
        (CreditAdjust, {"amount_cents": 1.0}, "amount_cents"),
        (CreditAdjust, {"amount_cents": 1, "note": "x" * 201}, "note"),
        (CreditAdjust, {"amount_cents": 1, "key": ""}, "key"),
        (CreditAdjust, {"amount_cents": 1, "key": "a b"}, "key"),
        (CreditAdjust, {"amount_cents": 1, "key": "x" * 256}, "key"),
        (PauseRequest, {"client_id": "x"}, "client_id"),
        (PauseRequest, {"provider": ""}, "provider"),
    ],
)
def test_an_administrator_is_bound_to_the_same_strictness(
    model: type[Body], content: dict[str, Any], field: str
) -> None:
    assert list(wrong(model, json.dumps(content).encode())) == [field]


# Paths and queries


def test_an_id_in_a_path_becomes_its_bytes() -> None:
    assert uuid_in_path(CLIENT) == UUID(CLIENT).bytes
    assert uuid_in_path(CLIENT.upper()) == UUID(CLIENT).bytes


@pytest.mark.parametrize("text", ["", "x", CLIENT + "\n", CLIENT.replace("-", ""), "preview"])
def test_another_id_in_a_path_is_invalid(text: str) -> None:
    with pytest.raises(InvalidId):
        uuid_in_path(text)


ALLOWED = {
    "client_id": reads.uuid,
    "to": reads.number,
    "reference": reads.text,
    "since": reads.time_ms,
    "day": reads.day,
    "limit": reads.limit,
    "status": reads.status,
    "group_by": reads.group_by,
    "wait_s": reads.wait_s,
}
NOON_MS = 1_795_435_200_000


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        (b"", {}),
        (b"&&", {}),
        (b"client_id=" + CLIENT.encode(), {"client_id": UUID(CLIENT).bytes}),
        (b"to=%2B15005550006", {"to": "+15005550006"}),
        (b"to=+15005550006", {"to": "+15005550006"}),
        (b"to=0912", {"to": "0912"}),
        (b"reference=a+b%2Bc%26", {"reference": "a b+c&"}),
        (b"reference=%D8%B3", {"reference": "س"}),
        (b"reference=\xd8\xb3", {"reference": "س"}),
        (b"reference=a=b", {"reference": "a=b"}),
        (b"reference=", {"reference": ""}),
        (b"reference", {"reference": ""}),
        (b"%72eference=x", {"reference": "x"}),
        (b"since=2026-11-23T12:00:00.007Z", {"since": NOON_MS + 7}),
        (b"since=2026-11-23T15:30:00+03:30", {"since": NOON_MS}),
        (b"since=2026-11-23T15:30:00%2B03:30", {"since": NOON_MS}),
        (b"day=2026-11-23", {"day": NOON_MS // 86_400_000}),
        (b"day=2026-11-24T02:00:00%2B03:00", {"day": NOON_MS // 86_400_000}),
        (b"day=1969-12-31", {"day": -1}),
        (b"limit=1&status=SENT", {"limit": 1, "status": "SENT"}),
        (b"limit=500", {"limit": 500}),
        (b"group_by=sender", {"group_by": "sender"}),
        (b"wait_s=0", {"wait_s": 0.0}),
        (b"wait_s=-0.0", {"wait_s": 0.0}),
        (b"wait_s=1.5", {"wait_s": 1.5}),
        (b"wait_s=1e-05", {"wait_s": 1e-05}),
        (b"wait_s=60", {"wait_s": 60.0}),
    ],
)
def test_a_query_is_read(raw: bytes, read: dict[str, Any]) -> None:
    assert query(raw, ALLOWED) == read


@pytest.mark.parametrize(
    ("raw", "field", "says"),
    [
        (b"colour=red", "colour", "is not a parameter of this request"),
        (b"Limit=5", "Limit", "is not a parameter of this request"),
        (b"limit=5&limit=5", "limit", "must be given only once"),
        (b"client_id=x", "client_id", "must be a UUID"),
        (b"client_id=", "client_id", "must be a UUID"),
        (b"reference=%FF", "reference", "must be UTF-8"),
        (b"reference=%ED%A0%BD", "reference", "must be UTF-8"),
        (b"reference=%00", "reference", "must not contain NUL (U+0000)"),
        (b"reference=" + b"x" * 256, "reference", "must have at most 255 characters"),
        (b"limit=0", "limit", "must be an integer from 1 to 500"),
        (b"limit=501", "limit", "must be an integer from 1 to 500"),
        (b"limit=-1", "limit", "must be an integer from 1 to 500"),
        (b"limit=5.0", "limit", "must be an integer from 1 to 500"),
        (b"limit=" + b"9" * 5000, "limit", "must be an integer from 1 to 500"),
        ("limit=۵".encode(), "limit", "must be an integer from 1 to 500"),
        (b"wait_s=61", "wait_s", "must be a number from 0 to 60"),
        (b"wait_s=-1", "wait_s", "must be a number from 0 to 60"),
        (b"wait_s=nan", "wait_s", "must be a number from 0 to 60"),
        (b"wait_s=1e999", "wait_s", "must be a number from 0 to 60"),
        (b"wait_s=1_0", "wait_s", "must be a number from 0 to 60"),
        (b"group_by=month", "group_by", "must be one of day, status, sender"),
    ],
)
def test_a_wrong_query_is_refused_by_name(raw: bytes, field: str, says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        query(raw, ALLOWED)
    assert by_field(caught.value) == {field: says}


@pytest.mark.parametrize("raw", [b"since=2026-11-23", b"since=5", b"day=2026-13-01", b"day=today"])
def test_a_wrong_time_in_a_query_is_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        query(raw, ALLOWED)
    assert list(by_field(caught.value)) == [raw.partition(b"=")[0].decode()]


def test_a_status_is_one_of_those_that_messages_have() -> None:
    with pytest.raises(InvalidRequest, match=r"must be one of SCHEDULED, QUEUED, .*UNKNOWN\."):
        query(b"status=sent", ALLOWED)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=30), st.sampled_from(sorted(ALLOWED)))
def test_any_query_is_read_or_refused(noise: bytes, name: str) -> None:
    for raw in (noise, name.encode() + b"=" + noise):
        try:
            query(raw, ALLOWED)
        except InvalidRequest as refusal:
            json.loads(problem(refusal)[1])
