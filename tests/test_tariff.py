"""What a message costs."""

import pytest

from smsgw.models import Lane
from smsgw.tariff import Tariff


@pytest.mark.parametrize(
    ("lane", "parts", "cost", "surcharge"),
    [
        (Lane.REGULAR, 1, 5, 0),
        (Lane.REGULAR, 3, 15, 0),
        (Lane.EXPRESS, 1, 7, 2),
        (Lane.EXPRESS, 3, 21, 6),
        (Lane.OTP, 1, 5, 0),
        (Lane.OTP, 2, 10, 0),
    ],
)
def test_a_message_costs_its_parts_and_express_a_surcharge_each(
    lane: Lane, parts: int, cost: int, surcharge: int
) -> None:
    tariff = Tariff()
    assert tariff.cost_cents(lane, parts) == cost
    assert tariff.surcharge_cents(lane, parts) == surcharge


def test_prices_can_be_set_and_can_be_nothing() -> None:
    tariff = Tariff(part_cents=0, express_part_cents=3, otp_part_cents=11)
    assert [tariff.cost_cents(lane, 2) for lane in Lane] == [0, 6, 22]
