"""A gateway of the version before goes on beside one that has brought the schema up to date.

``data/turns.sql`` is what a gateway of a released version has sent: the functions of its turns, and
some turns. It is written anew when a version is released, from its source:

    python -m tests.test_upgrade > tests/data/turns.sql
"""

import asyncio
import re
from pathlib import Path

import pytest

from smsgw import codes
from smsgw.accounts import AddClient, Adjust
from smsgw.admission import Admit, Draft, key_use
from smsgw.fairness import Claim, Grant
from smsgw.metrics import Metrics
from smsgw.models import Lane, Outcome, Status, Verdict
from smsgw.receipts import Receive
from smsgw.store import postgres_statements as statements
from smsgw.store.postgres import PostgresShard
from smsgw.worker import Settle
from tests import postgres
from tests.records import CLIENT, NOW_MS, RULES
from tests.stores import IDENTITY, findings, rows, turn

TURNS = Path(__file__).parent / "data" / "turns.sql"
BETWEEN = "\n-- then\n"
OUTCOME = Outcome(Verdict.ACCEPTED, "id")


async def work(store: PostgresShard) -> None:
    """Turns that touch every table that turns touch: three messages, and a code."""

    def draft(lane: Lane) -> Draft:
        return Draft(15005550006, "ACME", "hello", False, 2, lane, 10, 0, 0)

    await turn(store, AddClient(CLIENT, "test", 1, 1000), Adjust(CLIENT, 5, None, None))
    keys = [key_use(str(number), "messages") for number in range(3)]
    await turn(store, *[Admit(CLIENT, draft(Lane.REGULAR), key, RULES, 0) for key in keys])
    grants = [Grant(0, int(Lane.REGULAR), "mock", 4)]
    for message in (await turn(store, Claim(grants, dict(store.waiting)))).claims:
        await turn(store, Settle(message.number, message.attempts, OUTCOME, RULES))
        receipt = (message.number, 0, "id", "DELIVRD", None, RULES, Metrics())
        await turn(store, Receive(*receipt))
    opening = codes.Open(
        CLIENT,
        draft(Lane.OTP),
        key_use("code", "otp"),
        RULES,
        provider="mock",
        deadline_ms=NOW_MS + 5000,
        said_no=None,
    )
    await turn(store, opening)
    closing = (CLIENT, opening.answer.number, OUTCOME, opening.key, RULES)
    await turn(store, codes.Close(*closing, handset=False, codes=True))


async def recorded() -> str:
    """The functions of this version's turns, and what it calls them with."""
    scripts: list[str] = []
    with postgres.database() as url:
        store = await postgres.open_shard(postgres.Schema(url), IDENTITY)
        postgres.Unreliable(store.database).on_call = scripts.append
        await work(store)
        await store.close()
        made = statements.functions(store.schema).values()
    # How a transaction begins and ends differs between versions of the server.
    calls = [call for one in scripts for call in re.findall(r"SELECT \w+\.turn_\w+\(.*\$\)", one)]
    return BETWEEN.join([*made, *calls])


@pytest.mark.backends("postgres")
async def test_a_gateway_of_the_version_before_goes_on_beside_a_newer_one() -> None:
    calls = TURNS.read_text().split(BETWEEN)
    with postgres.database() as url:
        place = postgres.Schema(url)
        store = await postgres.open_shard(place, IDENTITY, gateway=1)
        found = re.search(r"turn_load_\w+\('(\d+)', '(\d+)'", "".join(calls))
        assert found is not None
        older, incarnation = int(found[1]), int(found[2])
        enter = statements.gateway_statements(store.schema, incarnation)["own_enter"]
        await store.database.fetch(enter, older, incarnation, 60.0)
        # One that is the same in this version is there already.
        known = statements.functions(store.schema).values()
        for call in calls:
            if call.strip() not in known:
                await store.database.fetch(call)
        assert findings(place) == []
        states = rows(place, "SELECT status, count(*) FROM message GROUP BY 1 ORDER BY 1")
        assert states == [(Status.QUEUED, 1), (Status.SENT, 1), (Status.DELIVERED, 2)]
        await turn(store, Adjust(CLIENT, 5, None, None))
        await store.close()


if __name__ == "__main__":
    print(asyncio.run(recorded()))
