"""The clients of ``serve --dev``: one with much credit, and ten with some."""

from typing import Final
from uuid import UUID

from smsgw.accounts import AddClient
from smsgw.gateway import Gateway

DEMO_CENTS: Final = 500_000
OTHERS_CENTS: Final = 50_000
_OTHERS: Final = range(1, 11)


async def create_demo_clients(gateway: Gateway) -> None:
    """Create those demo clients that are not there yet; the credit of the others stays."""
    await _create(gateway, 0, "demo", DEMO_CENTS)
    for number in _OTHERS:
        await _create(gateway, number, f"demo {number}", OTHERS_CENTS)


async def _create(gateway: Gateway, number: int, name: str, credit_cents: int) -> None:
    client_id = UUID(f"550e8400-e29b-41d4-a716-44665544{number:04d}").bytes
    shard = gateway.shards.of_client(client_id)
    await shard.ask(AddClient(client_id, name, credit_cents=credit_cents))
