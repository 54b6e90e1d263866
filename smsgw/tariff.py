"""What a message costs: one price for every language, fixed at acceptance."""

from dataclasses import dataclass

from smsgw.models import Lane


@dataclass(slots=True, frozen=True)
class Tariff:
    """Prices in cents a part."""

    part_cents: int = 5
    express_part_cents: int = 2
    otp_part_cents: int = 5

    def cost_cents(self, lane: Lane, parts: int) -> int:
        """What a message of that many parts costs in that lane."""
        if lane is Lane.OTP:
            return parts * self.otp_part_cents
        return parts * self.part_cents + self.surcharge_cents(lane, parts)

    def surcharge_cents(self, lane: Lane, parts: int) -> int:
        """The part of the cost that is paid for the time guarantee."""
        return parts * self.express_part_cents if lane is Lane.EXPRESS else 0
