import pytest

from smsgw.providers.smpp.status import ALARMING, CommandStatus, StatusClass, classify, name

PERMANENT = (
    *(0x01, 0x0A, 0x0B, 0x15, 0x33, 0x34, 0x40, 0x43, 0x44),
    *(0x48, 0x49, 0x50, 0x51, 0x54, 0x55, 0x61, 0x62, 0x63, 0x65, 0x66),
    *(0xC0, 0xC1, 0xC2, 0xC3, 0xC4),
)


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ((0x00,), StatusClass.ACCEPTED),
        ((0x58,), StatusClass.THROTTLED),
        ((0x08, 0x14, 0x45, 0x64, 0xFE, 0xFF), StatusClass.TEMPORARY),
        ((0x04, 0x05, 0x0D), StatusClass.LINK),
        ((0x0E, 0x0F, 0x53), StatusClass.LINK_CONFIG),
        ((0x02, 0x03), StatusClass.PROTOCOL),
        (PERMANENT, StatusClass.REFUSED),
        ((0x400, 0x42A, 0x4FF), StatusClass.REFUSED),
        ((0x101, 0x103, 0x104), StatusClass.REFUSED),
        ((0x102,), StatusClass.TEMPORARY),
        ((0x09, 0x4A, 0x3FF, 0x500, 0xFFFFFFFF), StatusClass.TEMPORARY),
    ],
    ids=str,
)
def test_a_status_has_a_class(codes: tuple[int, ...], expected: StatusClass) -> None:
    assert {code: classify(code) for code in codes} == dict.fromkeys(codes, expected)


def test_every_named_status_has_a_class_and_only_success_is_accepted() -> None:
    accepted = [status for status in CommandStatus if classify(status) is StatusClass.ACCEPTED]
    assert accepted == [CommandStatus.ESME_ROK]


def test_an_operator_may_give_its_codes_another_meaning() -> None:
    overrides = {0x42A: StatusClass.THROTTLED, 0x14: StatusClass.THROTTLED}
    assert classify(0x42A, overrides) is StatusClass.THROTTLED
    assert classify(0x14, overrides) is StatusClass.THROTTLED
    assert classify(0x42B, overrides) is StatusClass.REFUSED


def test_success_cannot_be_given_another_meaning() -> None:
    assert classify(0, {0: StatusClass.REFUSED}) is StatusClass.ACCEPTED


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (0x00, "ESME_ROK (0x00)"),
        (0x58, "ESME_RTHROTTLED (0x58)"),
        (0x0B, "ESME_RINVDSTADR (0x0B)"),
        (0x101, "ESME_RPROHIBITED (0x101)"),
        (0x42A, "0x0000042A"),
        (0xFFFFFFFF, "0xFFFFFFFF"),
    ],
)
def test_a_status_has_a_name_that_people_can_look_up(code: int, expected: str) -> None:
    assert name(code) == expected


def test_what_alarms_is_refused() -> None:
    assert {classify(code) for code in ALARMING} == {StatusClass.REFUSED}
    assert all(code in CommandStatus.__members__.values() for code in ALARMING)
