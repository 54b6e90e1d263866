"""Nobody starves another: ranks, claims, and the allotter over shards, with and without disk."""

import asyncio
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smsgw.accounts import PauseClient
from smsgw.admission import Accepted, BatchProgress
from smsgw.allotter import Allotter
from smsgw.clock import ManualClock
from smsgw.entrance import Wish
from smsgw.fairness import Claim, Unshelve, shelf
from smsgw.gateway import Gateway
from smsgw.ids import uuid_text
from smsgw.links import Bucket, Link
from smsgw.models import QUANTUM, Flow, Lane, Message, Status, Verdict
from smsgw.turn import Write
from tests.conftest import OpenGateway
from tests.fair_world import World, jain
from tests.support import DELIVERED, add_client, assert_clean, final_of, send, send_batch, still

EXPRESS = (0, int(Lane.EXPRESS))
MILLION = 1_000_000


@given(st.lists(st.tuples(st.integers(0, 10**9), st.integers(1, 10**7)), min_size=1))
def test_a_waiting_clients_ranks_rise_by_what_each_message_costs(
    steps: list[tuple[int, int]],
) -> None:
    flow = Flow(waiting=1)
    earliest = 0
    for virtual, cost in steps:
        rank = flow.join(virtual, cost)
        assert rank == max(virtual, earliest)
        earliest = rank + cost


def test_what_was_cancelled_costs_its_client_nothing() -> None:
    flow = Flow()
    first = flow.join(100, QUANTUM)
    flow.waiting = 1
    for _ in range(1000):
        flow.join(100, QUANTUM)
    flow.served_rank = first + QUANTUM
    flow.waiting = 0
    assert flow.join(100, QUANTUM) == 100 + QUANTUM


def test_messages_that_come_back_stand_in_a_row_of_their_own() -> None:
    flow = Flow(waiting=1)
    for _ in range(1000):
        flow.join(0, QUANTUM)
    assert [flow.rejoin(0, QUANTUM) for _ in range(3)] == [0, QUANTUM, 2 * QUANTUM]
    assert flow.join(0, QUANTUM) == 1000 * QUANTUM


@given(
    st.integers(1, 10_000),
    st.lists(st.tuples(st.floats(0, 2), st.integers(0, 50)), max_size=40),
)
def test_a_bucket_gives_no_more_than_its_rate_and_one_burst(
    rate: int, steps: list[tuple[float, int]]
) -> None:
    link = Link("mock", 100_000, Bucket(rate), otp_share=0)
    now_s, given_parts = 0.0, 0
    for wait_s, wanted in steps:
        now_s += wait_s
        parts = min(wanted, link.free(now_s))
        link.take(parts)
        given_parts += parts
        assert given_parts <= max(1.0, rate * link.bucket.burst_s) + now_s * rate + 1e-6


def test_a_bucket_says_when_its_next_token_comes() -> None:
    link = Link("mock", 100, Bucket(10.0))
    assert link.free(100.0) == 1
    link.take(3)
    wait_s = link.wait_s(100.0)
    assert wait_s is not None
    assert link.free(100.0 + wait_s - 0.01) == 0
    assert link.free(100.0 + wait_s + 1e-6) == 1


@pytest.mark.parametrize(
    ("window", "queue"), [(1, 1), (2, 1), (9, 8), (10, 9), (30, 27), (500, 450)]
)
def test_a_share_of_the_window_is_kept_free_for_codes(window: int, queue: int) -> None:
    link = Link("mock", window, Bucket(0), otp_share=0.1)
    assert link.free(0) == queue


async def test_a_code_finds_a_place_while_the_queue_fills_its_share() -> None:
    async with World(window=10) as world:
        link = world.allotter.links["mock"]
        link.otp_share = 0.1
        world.add_backlog(0, world.add_client(0), MILLION)
        world.worker.wake_soon()
        await world.quiet()
        assert link.in_flight == 9
        assert world.allotter.pick_for_otp(["mock"], 1, 0) is link
        assert world.allotter.pick_for_otp(["mock"], 1, 0) is None
        link.give_back(1, unsent=1)


@pytest.mark.parametrize("at_once", [1, 5])
@pytest.mark.parametrize(
    "places", [(0, 1, 2, 3) * 2, (0, 1, 1, 1, 1, 1, 1, 1), (0, 0, 0, 0, 0, 0, 0, 3), (0,) * 8]
)
async def test_equals_share_equally_wherever_they_are(places: Sequence[int], at_once: int) -> None:
    async with World() as world:
        clients = [world.add_client(shard) for shard in places]
        for shard, client in zip(places, clients, strict=True):
            world.add_backlog(shard, client, MILLION)
        world.worker.wake_soon()
        await world.serve(2000, at_once)
        assert jain([world.served[client] for client in clients]) > 0.999


@pytest.mark.parametrize("shards", [(0, 0, 0), (0, 1, 2)])
async def test_weights_are_shares(shards: Sequence[int]) -> None:
    async with World() as world:
        weights = (1, 2, 5)
        clients = [world.add_client(*pair) for pair in zip(shards, weights, strict=True)]
        for shard, client in zip(shards, clients, strict=True):
            world.add_backlog(shard, client, MILLION)
        world.worker.wake_soon()
        await world.serve(1600, 4)
        shares = [
            world.served[client] / weight for client, weight in zip(clients, weights, strict=True)
        ]
        assert jain(shares) > 0.999


async def test_shares_are_counted_in_parts() -> None:
    async with World(window=12) as world:
        short, long = world.add_client(0), world.add_client(1)
        world.send(0, short, 700)
        world.send(1, long, 200, parts=4)
        await world.serve(400, 2)
        assert jain([world.served[short], world.served[long]]) > 0.99
        assert world.allotter.links["mock"].in_flight <= 12 + 3


@pytest.mark.parametrize("homes", [(1, 2, 3), (0, 1, 2, 3)], ids=["alone", "in company"])
async def test_a_whale_delays_no_newcomer(homes: Sequence[int]) -> None:
    async with World() as world:
        world.add_backlog(0, world.add_client(0), MILLION)
        world.worker.wake_soon()
        await world.serve(50)
        for index in range(200):
            home = homes[index % len(homes)]
            newcomer = world.add_client(home)
            world.send(home, newcomer)
            await world.serve(2)
            assert world.served[newcomer] == 1


async def test_two_hundred_newcomers_at_once_wait_only_for_each_other() -> None:
    async with World() as world:
        whale = world.add_client(0)
        world.add_backlog(0, whale, MILLION)
        world.worker.wake_soon()
        await world.serve(50, 5)
        newcomers = [(index % 4, world.add_client(index % 4)) for index in range(200)]
        before = world.served[whale]
        for home, newcomer in newcomers:
            world.send(home, newcomer)
        await world.serve(230, 5)
        assert all(world.served[newcomer] == 1 for _, newcomer in newcomers)
        assert world.served[whale] > before


async def test_a_client_that_always_has_one_message_waiting_gets_one_share() -> None:
    async with World() as world:
        whale = world.add_client(0)
        world.add_backlog(0, whale, MILLION)
        eager = [(home, world.add_client(home)) for home in range(4)]
        world.worker.wake_soon()
        await world.quiet()
        for _ in range(500):
            for home, client in eager:
                if not world.rows[home].account_of[client].waiting:
                    world.send(home, client)
            await world.serve(1)
        shares = [world.served[whale], *(world.served[client] for _, client in eager)]
        assert jain(shares) > 0.99


@pytest.mark.parametrize("homes", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("at_once", [1, 3, 5])
async def test_express_is_served_first_but_never_all(homes: tuple[int, int], at_once: int) -> None:
    async with World() as world:
        hurried, patient = (world.add_client(home) for home in homes)
        world.add_backlog(homes[0], hurried, MILLION, EXPRESS)
        world.add_backlog(homes[1], patient, MILLION)
        world.worker.wake_soon()
        await world.serve(1000, at_once)
        assert 190 <= world.served[patient] <= 250


async def test_an_express_message_overtakes_every_regular_one() -> None:
    async with World() as world:
        world.add_backlog(0, world.add_client(0), MILLION)
        world.worker.wake_soon()
        await world.serve(20)
        for home in range(4):
            hurried = world.add_client(home)
            world.send(home, hurried, lane=Lane.EXPRESS)
            await world.serve(2)
            assert world.served[hurried] == 1


@pytest.mark.parametrize("homes", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("at_once", [1, 5])
async def test_routes_over_one_operator_share_it(homes: tuple[int, int], at_once: int) -> None:
    async with World() as world:
        world.allotter.routes = {0: ("mock",), 1: ("mock",)}
        clients = [world.add_client(home) for home in homes]
        for route, (home, client) in enumerate(zip(homes, clients, strict=True)):
            world.add_backlog(home, client, MILLION, (route, 0))
        world.worker.wake_soon()
        await world.serve(1000, at_once)
        assert jain([world.served[client] for client in clients]) > 0.99


@pytest.mark.parametrize("homes", [(0, 0, 0), (0, 1, 2)])
@pytest.mark.parametrize("at_once", [1, 3, 5, 10])
@pytest.mark.parametrize("patient_routes", [(1,), (1, 2), (0, 1)])
async def test_express_of_one_route_is_served_before_regular_of_others_but_never_all(
    homes: tuple[int, int, int], at_once: int, patient_routes: tuple[int, ...]
) -> None:
    async with World() as world:
        world.allotter.routes = {0: ("mock",), 1: ("mock",), 2: ("mock",)}
        hurried = world.add_client(homes[0])
        world.add_backlog(homes[0], hurried, MILLION, EXPRESS)
        patient = {
            route: world.add_client(home)
            for route, home in zip(patient_routes, homes[1:], strict=False)
        }
        for (route, client), home in zip(patient.items(), homes[1:], strict=False):
            world.add_backlog(home, client, MILLION, (route, 0))
        world.worker.wake_soon()
        await world.serve(1000, at_once)
        shares = [world.served[client] for client in patient.values()]
        assert 190 <= sum(shares) <= 250
        assert jain(shares) > 0.98


async def test_an_express_message_overtakes_every_regular_one_of_another_route() -> None:
    async with World() as world:
        world.allotter.routes = {0: ("mock",), 1: ("mock",)}
        world.add_backlog(0, world.add_client(0), MILLION, (1, 0))
        world.worker.wake_soon()
        await world.serve(20)
        for home in range(4):
            hurried = world.add_client(home)
            world.send(home, hurried, 3, lane=Lane.EXPRESS)
            await world.serve(4)
            assert world.served[hurried] == 3


@pytest.mark.parametrize("at_once", [1, 4, 10])
async def test_a_little_express_leaves_places_free_for_nobody_and_helps_no_regular_one(
    at_once: int,
) -> None:
    async with World() as world:
        world.allotter.routes = {0: ("mock",), 1: ("mock",)}
        clients = [world.add_client(home) for home in (0, 1)]
        for route, client in enumerate(clients):
            world.add_backlog(route, client, MILLION, (route, 0))
        hurried = world.add_client(2)
        world.worker.wake_soon()
        for _ in range(100):
            world.send(2, hurried, lane=Lane.EXPRESS)
            await world.serve(10, at_once)
            assert world.allotter.links["mock"].in_flight == 10
        assert world.served[hurried] == 100
        assert jain([world.served[client] for client in clients]) > 0.98


async def test_express_of_several_routes_goes_before_what_is_regular_on_any_of_them() -> None:
    async with World() as world:
        world.allotter.routes = {0: ("mock",), 1: ("mock",)}
        patient, hurried = world.add_client(0), world.add_client(1)
        world.add_backlog(0, patient, MILLION)
        world.add_backlog(1, hurried, MILLION, (1, int(Lane.EXPRESS)))
        trickle = world.add_client(2)
        world.worker.wake_soon()
        for _ in range(200):
            world.send(2, trickle, lane=Lane.EXPRESS)
            await world.serve(5)
        assert world.served[trickle] == 200
        assert 150 <= world.served[patient] <= 250


@pytest.mark.parametrize("homes", [(0, 0), (0, 1), (1, 0)])
def test_what_finds_room_at_a_better_operator_keeps_no_places_at_a_worse_one(
    homes: tuple[int, int],
) -> None:
    allotter = Allotter(0.2)
    better = Link("better", 150, Bucket(0.0), otp_share=0.0)
    worse = Link("worse", 10, Bucket(0.0), priority=1, otp_share=0.0)
    allotter.links = {"better": better, "worse": worse}
    allotter.routes = {0: ("better", "worse"), 1: ("worse",)}
    waiting: list[dict[tuple[int, int], int]] = [{}, {}]
    for home, key in zip(homes, ((0, int(Lane.REGULAR)), (1, int(Lane.EXPRESS))), strict=True):
        waiting[home][key] = MILLION

    def served(turns: int) -> list[int]:
        """How many parts of the worse operator each lane got; all is answered every four turns."""
        parts = [0, 0]
        for turn in range(turns):
            shard = turn % 2
            allotter.report(shard, waiting[shard], dict.fromkeys(waiting[shard], 0))
            claim = Claim(allotter.grants(shard, 0, 0.0, 32), {})
            for grant in claim.grants:
                grant.used = grant.parts
                parts[grant.lane] += grant.parts * (grant.provider == "worse")
            allotter.settle_grants(claim, committed=True)
            if turn % 4 == 3:
                for link in (better, worse):
                    link.give_back(link.in_flight, unsent=link.in_flight)
        return parts

    for shard in (0, 1):
        allotter.report(shard, waiting[shard], dict.fromkeys(waiting[shard], 0))
    regular, express = served(800)
    assert express >= 1950
    # Where the better one fails, places are kept here again, and not for longer than that.
    better.usable = False
    regular, express = served(800)
    assert 390 <= regular <= 700
    assert express >= 1200
    better.usable = True
    regular, express = served(800)
    assert express >= 1950


async def test_a_backlog_for_a_dead_operator_stands_before_nobody() -> None:
    async with World() as world:
        world.add_operator("other", 10)
        world.allotter.routes = {0: ("mock",), 1: ("other",), 2: ("mock", "other")}
        world.allotter.links["mock"].usable = False
        world.add_backlog(0, world.add_client(0), MILLION)
        clients = [world.add_client(0), world.add_client(1)]
        world.add_backlog(0, clients[0], MILLION, (1, 0))
        world.add_backlog(1, clients[1], MILLION, (2, 0))
        world.worker.wake_soon()
        await world.serve(400)
        assert jain([world.served[client] for client in clients]) > 0.99
        assert {submission.shard for submission in world.order} == {0, 1}
        assert world.operators["mock"].held == []


async def test_operators_are_used_by_weight_and_by_priority() -> None:
    async with World(window=90) as world:
        world.add_operator("other", 90)
        world.allotter.routes = {0: ("mock", "other")}
        world.allotter.links["mock"].weight = 2
        client = world.add_client(0)
        for _ in range(45):
            world.send(0, client)
            await world.quiet()
        held = {name: len(operator.held) for name, operator in world.operators.items()}
        assert held == {"mock": 30, "other": 15}
        world.allotter.links["other"].priority = -1
        for _ in range(45):
            world.send(0, client)
            await world.quiet()
        assert len(world.operators["other"].held) == 60


async def one_by_one(world: World, count: int, *, otp: bool = False) -> Counter[str]:
    """Messages that are each answered before the next one comes; how many each operator got."""
    got: Counter[str] = Counter()
    client = world.add_client(0)
    for _ in range(count):
        if otp:
            link = world.allotter.pick_for_otp(world.allotter.routes[0], 1, 0.0)
            assert link is not None
            got[link.name] += 1
            link.give_back(1)
            continue
        world.send(0, client)
        await world.quiet()
        for name, operator in world.operators.items():
            while operator.held:
                got[name] += 1
                operator.answer(1)
        await world.quiet()
    return got


@pytest.mark.parametrize("otp", [False, True])
async def test_equals_share_by_weight_also_where_little_is_sent(otp: bool) -> None:
    async with World(window=90) as world:
        world.add_operator("other", 90)
        world.allotter.routes = {0: ("mock", "other")}
        assert await one_by_one(world, 20, otp=otp) == {"mock": 10, "other": 10}
        world.allotter.links["mock"].weight, world.allotter.links["other"].weight = 2, 3
        got = await one_by_one(world, 50, otp=otp)
        assert got.keys() == {"mock", "other"}
        assert abs(got["mock"] - 20) <= 1


@pytest.mark.parametrize("at_once", [True, False], ids=["together", "in turn"])
@pytest.mark.parametrize("fresh", [False, True], ids=["stored", "fresh"])
@pytest.mark.parametrize(
    ("shards", "weights"), [(1, (3, 1)), (4, (3, 1)), (8, (3, 1)), (8, (2, 5))]
)
def test_equals_share_by_weight_also_where_the_turns_of_shards_overlap(
    shards: int, weights: tuple[int, int], fresh: bool, at_once: bool
) -> None:
    allotter = Allotter(0.2)
    for name, weight in zip("ab", weights, strict=True):
        allotter.links[name] = Link(name, 2000, Bucket(0.0), weight=weight)
    allotter.routes = {0: ("a", "b"), 1: ("a",), 2: ("b",)}
    waiting = {} if fresh else {(0, int(Lane.REGULAR)): MILLION}
    got: Counter[str] = Counter()

    def begun(shard: int) -> Claim:
        allotter.report(shard, waiting, dict.fromkeys(waiting, 0))
        return Claim(allotter.grants(shard, 100 * fresh, 0.0, 100), {})

    def ended(claim: Claim) -> None:
        left = 100
        for grant in claim.grants:
            grant.used = min(grant.parts, left)
            left -= grant.used
            got[grant.provider] += grant.used
        allotter.settle_grants(claim, committed=True)
        for grant in claim.grants:
            allotter.links[grant.provider].give_back(grant.used)

    turns = [begun(shard) for shard in range(shards)]
    for _ in range(200):
        if at_once:
            for turn in turns:
                ended(turn)
            turns = [begun(shard) for shard in range(shards)]
        else:
            for shard in range(shards):
                ended(turns[shard])
                turns[shard] = begun(shard)
    assert got.total() == 200 * shards * 100
    assert got["a"] / got.total() == pytest.approx(weights[0] / sum(weights), abs=0.01)
    for turn in turns:
        allotter.settle_grants(turn, committed=False)
    assert not any(link.promised or link.in_flight for link in allotter.links.values())


async def test_a_slow_operator_is_given_its_share_as_long_as_it_has_room() -> None:
    async with World(window=90) as world:
        world.add_operator("slow", 90)
        world.allotter.routes = {0: ("mock", "slow")}
        client = world.add_client(0)
        for _ in range(60):
            world.send(0, client)
            await world.quiet()
            while world.operators["mock"].held:
                world.operators["mock"].answer(1)
        assert len(world.operators["slow"].held) == 30


async def test_one_that_was_away_is_owed_nothing() -> None:
    async with World(window=90) as world:
        world.add_operator("other", 90)
        world.allotter.routes = {0: ("mock", "other")}
        world.allotter.links["other"].usable = False
        assert await one_by_one(world, 40) == {"mock": 40}
        world.allotter.links["other"].usable = True
        got = await one_by_one(world, 10)
        assert abs(got["other"] - 5) <= 1


async def test_a_shard_that_cannot_write_holds_up_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async with World() as world:
        clients = [world.add_client(home) for home in (0, 1)]
        for home, client in enumerate(clients):
            world.add_backlog(home, client, MILLION)
        world.rows[1].broken = True
        world.worker.wake_soon()
        await world.serve(300)
        assert world.served[clients[0]] >= 300
        assert world.served[clients[1]] == 0
        assert world.shards[1].trouble
        assert world.allotter.links["mock"].in_flight == 10


def test_what_is_free_goes_to_the_first_that_looks_but_a_whole_window_to_nobody() -> None:
    allotter = Allotter(0.2)
    link = allotter.links["op"] = Link("op", 40, Bucket(0.0), otp_share=0.0)
    allotter.routes = {0: ("op",)}
    for shard in range(4):
        allotter.report(shard, {(0, 0): MILLION}, {(0, 0): 0})

    def parts(shard: int) -> int:
        return sum(grant.parts for grant in allotter.grants(shard, 0, 0.0))

    assert [parts(shard) for shard in (2, 0, 3, 1)] == [10, 10, 10, 10]
    # From now on a few become free at a time, and wait for no second look.
    for shard, count in ((1, 8), (1, 1), (3, 5)):
        link.give_back(count)
        assert parts(shard) == count
    # But the last one is for a shard with something earlier.
    allotter.report(2, {(0, 0): MILLION}, {(0, 0): QUANTUM})
    link.give_back(4)
    assert [parts(shard) for shard in (2, 0)] == [1, 3]


@pytest.mark.parametrize("whales", [1, 2, 3])
@pytest.mark.parametrize("limits", [{"rate": 1000.0}, {"window": 16}], ids=["rate", "window"])
def test_a_little_that_waits_elsewhere_leaves_nothing_unused(
    limits: dict[str, float], whales: int
) -> None:
    allotter = Allotter(0.2)
    bucket = Bucket(limits.get("rate", 0.0))
    link = Link("op", int(limits.get("window", 500)), bucket, otp_share=0.0)
    allotter.links["op"] = link
    allotter.routes = {0: ("op",)}
    key = (0, int(Lane.REGULAR))
    # Whales wait in the first shards, one message of a newcomer in each of the three others.
    ranks = dict.fromkeys(range(whales + 3), 0)
    got: Counter[int] = Counter()

    def turn(shard: int, now_s: float) -> None:
        claim = Claim(allotter.grants(shard, 0, now_s), {})
        for grant in claim.grants:
            allowed = (grant.rank_max - ranks[shard]) // QUANTUM + 1
            grant.used = max(0, min(grant.parts, allowed))
            got[shard] += grant.used
            ranks[shard] += grant.used * QUANTUM
            link.give_back(grant.used)
        allotter.settle_grants(claim, committed=True)
        if claim.units:
            last = SimpleNamespace(route=key[0], lane=key[1], rank=ranks[shard] - QUANTUM)
            allotter.served([cast(Message, last)])
        if shard < whales:
            allotter.report(shard, {key: MILLION}, {key: ranks[shard]})
        else:
            assert claim.units == 1, "a newcomer waits for its shard's turn, never for a place"
            allotter.report(shard, {}, {})
            ranks[shard] = allotter.virtual[key]
            allotter.report(shard, {key: 1}, {key: ranks[shard]})

    for shard in ranks:
        allotter.report(shard, {key: MILLION if shard < whales else 1}, {key: 0})
    # Turns of a shard are 16 ms apart: so whenever a whale's shard looks, newcomers wait.
    turns = 1000
    for number in range(1, turns + 1):
        for shard in ranks:
            turn(shard, 0.016 * (number + shard / len(ranks)))
    assert got.total() >= 16 * turns * 0.99
    assert jain([got[shard] for shard in range(whales)]) > 0.999
    # Nor does who comes now catch up with what the whales were given beside newcomers.
    assert max(ranks[shard] for shard in range(whales)) - allotter.virtual[key] <= 50 * QUANTUM


def test_no_places_are_kept_for_what_is_ranked_later() -> None:
    allotter = Allotter(0.2)
    link = allotter.links["op"] = Link("op", 100, Bucket(0.0), otp_share=0.0)
    allotter.routes = {0: ("op",)}
    allotter.report(0, {(0, 0): MILLION}, {(0, 0): 0})
    allotter.report(1, {(0, 0): 40}, {(0, 0): 1000 * QUANTUM})
    assert not allotter.grants(1, 0, 0.0)
    while grants := allotter.grants(0, 0, 0.0):
        assert grants[0].rank_max >= 1000 * QUANTUM
    assert link.in_flight == 100


async def test_housekeeping_takes_no_places() -> None:
    async with World(window=1) as world:
        for shard in world.shards.values():
            shard.put(Write())
        taken = set()
        while not all(rows.turns for rows in world.rows.values()):
            await asyncio.sleep(0)
            taken.add(world.allotter.links["mock"].in_flight)
        assert taken == {0}


async def test_unused_grants_are_handed_back() -> None:
    async with World(window=10) as world:
        client = world.add_client(0)
        link = world.allotter.links["mock"]
        grants = world.allotter.grants(0, 4, 0)
        assert link.in_flight == sum(grant.parts for grant in grants) == 4
        world.send(0, client)
        for grant in grants:
            link.give_back(grant.parts, unsent=grant.parts)
        await world.quiet()
        assert link.in_flight == 1
        await world.serve(1)
        assert link.in_flight == 0


async def test_a_longer_last_message_may_overdraw_a_window_but_no_second_one() -> None:
    async with World(window=4) as world:
        client = world.add_client(0)
        world.send(0, client, 3, parts=3)
        await world.quiet()
        assert world.allotter.links["mock"].in_flight == 6
        world.operators["mock"].answer(1)
        await world.quiet()
        assert world.allotter.links["mock"].in_flight == 6


async def test_tokens_bound_what_is_claimed_and_come_back_when_nothing_was_sent() -> None:
    async with World(window=100, rate_parts_per_s=100) as world:
        client = world.add_client(0)
        world.add_backlog(0, client, MILLION)
        world.clock.advance(10)
        world.worker.wake_soon()
        await world.quiet()
        assert world.served[client] == 5
        world.operators["mock"].answer(5, Verdict.NOT_SENT)
        await world.quiet()
        assert world.served[client] == 10
        world.operators["mock"].answer(5)
        await world.quiet()
        assert world.served[client] == 10
        world.clock.advance(0.02)
        world.worker.wake_soon()
        await world.quiet()
        assert world.served[client] == 12


async def test_what_was_throttled_goes_first_again_after_the_pause() -> None:
    async with World(window=2) as world:
        client = world.add_client(0)
        world.add_backlog(0, client, MILLION)
        world.worker.wake_soon()
        await world.quiet()
        numbers = [submission.number for submission in world.order]
        world.operators["mock"].answer(2, Verdict.THROTTLED)
        await world.quiet()
        assert len(world.order) == 2
        world.clock.advance(1.1)
        world.worker.wake_soon()
        await world.quiet()
        assert [submission.number for submission in world.order[2:]] == numbers
        assert [submission.attempt for submission in world.order[2:]] == [1, 1]


async def test_a_paused_client_is_passed_over_and_comes_back_with_one_share() -> None:
    async with World() as world:
        clients = [world.add_client(home) for home in (0, 0, 1)]
        paused = clients[0]
        for home, client in zip((0, 0, 1), clients, strict=True):
            world.add_backlog(home, client, MILLION)
        await world.shards[0].ask(PauseClient(paused, paused=True))
        world.worker.wake_soon()
        await world.serve(600, 3)
        assert world.served[paused] == 0
        aside = world.rows[0].waiting[shelf(0), 0]
        assert 0 < aside < 1000
        await world.shards[0].ask(PauseClient(paused, paused=False))
        number = world.rows[0].account_of[paused].number
        while await world.shards[0].ask(Unshelve(paused, number)):
            world.worker.wake_soon()
        assert world.rows[0].waiting[shelf(0), 0] == 0
        world.served.clear()
        await world.serve(600, 3)
        # Two rows of its own, what was set aside and the rest: never more than two shares.
        assert 190 < world.served[paused] < 320


async def test_v_starts_at_the_lowest_rank_of_all_shards() -> None:
    world = World()
    for shard, rank in ((0, 700), (1, 100), (2, 900)):
        world.allotter.report(shard, {(0, 0): 1}, {})
        world.allotter.start(shard, {(0, 0): rank})
    assert world.allotter.virtual == {(0, 0): 100}


async def test_nothing_is_claimed_while_paused_or_stopped() -> None:
    async with World() as world:
        client = world.add_client(0)
        world.add_backlog(0, client, MILLION)
        for name in ("paused", "stopped"):
            setattr(world.allotter, name, True)
            world.worker.wake_soon()
            await world.quiet()
            assert world.allotter.grants(0, 100, 0) == []
            setattr(world.allotter, name, False)
        assert world.served[client] == 0
        world.worker.wake_soon()
        await world.quiet()
        assert world.served[client] == 10


Step = tuple[str, int, int, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["regular", "express", "answer", "answer", "pause", "resume", "wait"]),
        st.integers(0, 5),
        st.integers(1, 12),
        st.integers(1, 4),
    ),
    max_size=25,
)


@settings(max_examples=150)
@given(steps=STEPS, seed=st.integers(0, 1000), window=st.integers(1, 8), routes=st.integers(1, 2))
def test_whatever_comes_is_served_once_within_the_window_and_never_waits_for_nothing(
    steps: list[Step], seed: int, window: int, routes: int
) -> None:
    asyncio.run(_live(steps, seed, window, routes))


async def _live(steps: list[Step], seed: int, window: int, routes: int) -> None:
    async with World(window=window, seed=seed, shards=3) as world:
        world.allotter.routes = dict.fromkeys(range(routes), ("mock",))
        clients = [(index % 3, world.add_client(index % 3, 1 + index)) for index in range(6)]
        link = world.allotter.links["mock"]
        sent = 0
        paused: set[bytes] = set()
        before: dict[tuple[int, int], int] = {}
        for what, which, count, parts in steps:
            home, client = clients[which]
            if what == "express" and client in paused:
                # No time can be promised to it: refused at the door.
                continue
            if what in ("regular", "express"):
                lane = Lane[what.upper()]
                world.send(home, client, count, parts=parts, lane=lane, route=which % routes)
                sent += count
            elif what == "answer":
                world.operators["mock"].answer(count)
            elif what in ("pause", "resume"):
                (paused.add if what == "pause" else paused.discard)(client)
                await _pause(world, home, client, paused=what == "pause")
            if what != "wait":
                await world.quiet()
            # Each of three shards may overdraw by what its longest message needs beyond one place.
            assert len(world.operators["mock"].held) <= window
            assert link.in_flight <= window + 3 * 3
            assert all(world.allotter.virtual[key] >= rank for key, rank in before.items())
            assert link.in_flight >= window or not _claimable(world) or paused
            before = dict(world.allotter.virtual)
        await world.quiet()
        assert link.in_flight >= window or not _claimable(world)
        for home, client in clients:
            await _pause(world, home, client, paused=False)
        await world.serve_all()
        assert len({(s.shard, s.number) for s in world.order}) == len(world.order) == sent
        assert link.in_flight == 0
        assert not any(any(rows.waiting.values()) for rows in world.rows.values())


async def _pause(world: World, home: int, client: bytes, *, paused: bool) -> None:
    shard = world.shards[home]
    await shard.ask(PauseClient(client, paused=paused))
    number = world.rows[home].account_of[client].number
    while not paused and await shard.ask(Unshelve(client, number)):
        world.worker.wake_soon()


def _claimable(world: World) -> int:
    return sum(
        count
        for rows in world.rows.values()
        for (route, _), count in rows.waiting.items()
        if route >= 0
    )


def _order(journal: Path, names: dict[str, str]) -> list[str]:
    """Who was served, in order."""
    return [names[json.loads(line)["message_id"]] for line in journal.read_text().splitlines()]


async def _waiting_batch(gateway: Gateway, client: bytes, count: int) -> list[Message]:
    progress = await send_batch(gateway, client, [Wish(DELIVERED, "ACME", "x")] * count)
    assert isinstance(progress, BatchProgress)
    return [result.message for result in progress.results.values() if isinstance(result, Accepted)]


@pytest.mark.parametrize(
    "limits", [{"window": 4}, {"rate_parts_per_s": 2000.0}], ids=["window", "rate"]
)
async def test_the_journal_shows_equal_shares_for_clients_of_any_shard(
    gateway_of: OpenGateway, tmp_path: Path, limits: dict[str, float]
) -> None:
    journal = tmp_path / "journal"
    mock = {"journal": str(journal), **limits}
    gateway = await gateway_of({"providers": {"mock": mock}}, manual=False)
    await gateway.pause("", paused=True)
    names: dict[str, str] = {}
    messages: list[Message] = []
    homes: list[int] = []
    for index in range(8):
        client = await add_client(gateway, 10_000)
        homes.append(gateway.shards.of_client(client).number)
        waiting = await _waiting_batch(gateway, client, 60)
        names |= {uuid_text(message.id): str(index) for message in waiting}
        messages += waiting
    await gateway.pause("", paused=False)
    for message in messages:
        await final_of(gateway, message)
    order = _order(journal, names)
    assert len(order) == 480
    shares = [order[:240].count(str(index)) for index in range(8)]
    assert jain(shares) > 0.98, (shares, homes)
    await assert_clean(gateway)


async def test_a_scheduled_campaign_that_falls_due_delays_no_newcomer(
    gateway_of: OpenGateway, clock: ManualClock, tmp_path: Path
) -> None:
    journal = tmp_path / "journal"
    gateway = await gateway_of({"providers": {"mock": {"window": 1, "journal": str(journal)}}})
    await still(gateway)
    campaign, newcomer = await add_client(gateway, 10_000), await add_client(gateway, 10_000)
    at_ms = clock.now_ms() + 1000
    due = await send_batch(
        gateway, campaign, [Wish(DELIVERED, "ACME", "x", send_at_ms=at_ms)] * 100
    )
    assert isinstance(due, BatchProgress)
    names = {
        uuid_text(result.message.id): "campaign"
        for result in due.results.values()
        if isinstance(result, Accepted)
    }
    await gateway.pause("", paused=True)
    clock.advance(2)
    for sweeper in gateway._sweepers:
        await sweeper.sweep()
    answer = await send(gateway, newcomer)
    assert isinstance(answer, Accepted)
    names[uuid_text(answer.message.id)] = "newcomer"
    await gateway.pause("", paused=False)
    for result in due.results.values():
        assert isinstance(result, Accepted)
        done = await final_of(gateway, result.message)
        assert done.status == Status.DELIVERED
    assert _order(journal, names).index("newcomer") <= 2


async def test_ranks_go_on_where_they_were_after_a_restart(gateway_of: OpenGateway) -> None:
    gateway = await gateway_of()
    await gateway.pause("", paused=True)
    client = await add_client(gateway)
    before = await _waiting_batch(gateway, client, 3)
    await gateway.close()
    gateway = await gateway_of()
    assert gateway.allotter.virtual[before[0].route, 0] == before[0].rank
    after = await _waiting_batch(gateway, client, 1)
    assert after[0].rank > before[-1].rank
