"""Which operators a message may go to: at first, after a failure, and once parts are accepted."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from smsgw.routing import Operator, Routing, operators_of

IRAN = 989121234567
names = st.sampled_from("abcdef")
operators = st.dictionaries(
    names,
    st.tuples(
        st.lists(st.sampled_from(["+98", "989", "98912", "1"]), max_size=2, unique=True),
        st.sampled_from(["", "udh", "sar", None]),
        st.booleans(),
    ),
    min_size=1,
).map(lambda found: [Operator(name, tuple(p), s, on) for name, (p, s, on) in found.items()])


def numbered(known: list[Operator]) -> tuple[Routing, dict[int, tuple[str, ...]]]:
    routing = Routing(known)
    sets = dict(enumerate(sorted(routing.sets())))
    routing.number(sets)
    return routing, {number: operators_of(one) for number, one in sets.items()}


@given(operators, names)
def test_only_who_cuts_alike_goes_on_with_what_an_operator_has_begun(
    known: list[Operator], begun_by: str
) -> None:
    routing, routes = numbered(known)
    splits = {one.name: one.splits for one in known}
    eligible = routing.eligible(IRAN)
    able = {
        name
        for name in eligible
        if splits[name] is not None
        and (name == begun_by or (splits.get(begun_by) and splits[name] == splits[begun_by]))
    }
    for route, there in routes.items():
        moved = routing.begun(IRAN, route, begun_by)
        assert set(routes[moved]) <= able
        assert routes[moved] == there if moved == route else set(routes[moved]) == able
        # There it stays.
        assert routing.begun(IRAN, moved, begun_by) == moved


@given(operators, names, names)
def test_after_a_failure_a_message_goes_to_the_others_that_can_take_it(
    known: list[Operator], failed: str, begun_by: str
) -> None:
    routing, routes = numbered(known)
    eligible = routing.eligible(IRAN)
    able = routes[routing.begun(IRAN, routing.route(IRAN), begun_by)]
    for whole, first in ((eligible, None), (able, begun_by)):
        route, others = routing.next_after(IRAN, failed, first)
        assert routes[route] == others
        assert others == (tuple(name for name in whole if name != failed) or whole)
        # When its time has come, it is still for them; but nobody is nobody's.
        if others:
            assert routes[routing.again(IRAN, route)] == others


@given(operators, st.data())
def test_a_message_is_offered_at_once_to_each_operator_once_at_most(
    known: list[Operator], data: st.DataObject
) -> None:
    routing, routes = numbered(known)
    eligible = set(routing.eligible(IRAN))
    route, failed = routing.route(IRAN), set[str]()
    while eligible - failed:
        last = data.draw(st.sampled_from(sorted(set(routes[route]))))
        assert last not in failed
        failed.add(last)
        offers = routing.untried(IRAN, route, last, len(failed))
        assert all(routes[number] == there for number, there in offers)
        assert all(set(there) <= eligible - failed for _, there in offers)
        if len(failed) < 3:
            # Later some may be left out, but nobody is asked twice.
            assert {name for _, there in offers for name in there} == eligible - failed
        if not offers:
            break
        route, _ = data.draw(st.sampled_from(offers))
    assert routing.untried(IRAN, routing.route(IRAN), "a", len(eligible)) == []


@given(operators, names)
def test_nobody_is_called_to_where_only_rests_go(known: list[Operator], begun_by: str) -> None:
    routing, _ = numbered(known)
    whole = routing.route(IRAN)
    assert not {whole, routing.begun(IRAN, whole, begun_by)} & routing.rests()


def test_where_all_cut_alike_nothing_is_apart() -> None:
    routing, _ = numbered([Operator(name, splits="udh") for name in "abc"])
    plain, _ = numbered([Operator(name) for name in "abc"])
    alone = {(name,) for name in "abc"}
    assert routing.sets() == {(), *alone, *combinations("abc", 2), ("a", "b", "c")}
    assert routing.sets() < plain.sets()
    assert routing.text() != plain.text()


def test_a_route_for_what_is_begun_is_no_route_for_a_rest() -> None:
    routing, routes = numbered([Operator("a", splits="udh"), Operator("b")])
    alone = routing.begun(IRAN, routing.route(IRAN), "a")
    rest, _ = routing.next_after(IRAN, "b")
    assert routes[alone] == routes[rest] == ("a",)
    assert routing.rests() == {rest, routing.next_after(IRAN, "a")[0]}
    assert alone not in routing.rests()
    assert not routing.is_stale(alone)


def test_what_is_left_of_those_that_go_on_is_a_rest_too() -> None:
    routing, routes = numbered(
        [Operator("a", splits="udh"), Operator("b"), Operator("c", splits="udh")]
    )
    rest, others = routing.next_after(IRAN, "a", "a")
    assert routes[rest] == others == ("c",)
    assert rest in routing.rests()
