import re
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from smsgw import __version__
from smsgw.metrics import BUCKETS_S, CONTENT_TYPE, FINAL_STATUSES, FINE_BUCKETS_S, LANES, Metrics

LABELS = {
    "smsgw_build_info": {"python", "version"},
    "smsgw_clock_jumps_total": set(),
    "smsgw_commit_duration_seconds": set(),
    "smsgw_event_loop_lag_seconds": set(),
    "smsgw_express_missed_total": set(),
    "smsgw_http_request_duration_seconds": {"route"},
    "smsgw_http_requests_total": {"method", "route", "status"},
    "smsgw_inbound_total": {"provider"},
    "smsgw_messages_accepted_total": {"lane"},
    "smsgw_messages_final_total": {"status"},
    "smsgw_messages_parts_total": {"lane"},
    "smsgw_messages_refused_total": {"code"},
    "smsgw_otp_cancels_total": {"provider"},
    "smsgw_otp_late_after_503_total": {"provider"},
    "smsgw_otp_total": {"result"},
    "smsgw_provider_up": {"provider"},
    "smsgw_postgres_round_trips_total": set(),
    "smsgw_quarantined_total": set(),
    "smsgw_queue_waiting": {"lane"},
    "smsgw_receipts_parked": set(),
    "smsgw_receipts_total": {"result"},
    "smsgw_shard_up": {"shard"},
    "smsgw_submit_duration_seconds": {"provider"},
    "smsgw_submits_total": {"outcome", "provider"},
    "smsgw_turn_duration_seconds": set(),
    "smsgw_turn_items": set(),
    "smsgw_wal_bytes": {"shard"},
}


def samples(metrics: Metrics) -> dict[str, float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def after_everything() -> Metrics:
    metrics = Metrics()
    metrics.accepted("regular", 2, parts=5)
    metrics.accepted("otp")
    metrics.refused("insufficient_credits")
    metrics.refused("insufficient_credits", 3)
    metrics.final("DELIVERED", 7)
    metrics.final("UNKNOWN")
    metrics.queue_waiting("express", 9)
    metrics.queue_waiting("express", 4)
    metrics.express_missed()
    metrics.submitted("mock", "accepted", 0.02)
    metrics.submitted("mock", "refused", 0.2)
    metrics.provider_up("mock", True)
    metrics.receipt("applied", 2)
    metrics.receipts_parked(3)
    metrics.inbound("mock")
    metrics.otp("confirmed")
    metrics.otp_late_after_503("mock")
    metrics.otp_cancelled("mock")
    metrics.turn(0.004, 12)
    metrics.commit(0.00015)
    metrics.quarantined()
    metrics.shard_up(0, False)
    metrics.wal_bytes(0, 4096)
    metrics.http("/v1/messages/{id}", "GET", 200, 0.003)
    metrics.http("/v1/messages/{id}", "GET", 404, 0.001)
    metrics.loop_lag(0.001)
    metrics.clock_jumped()
    return metrics


@pytest.mark.parametrize(
    ("sample", "value"),
    [
        ("smsgw_messages_accepted_total{lane=regular}", 2),
        ("smsgw_messages_accepted_total{lane=otp}", 1),
        ("smsgw_messages_accepted_total{lane=express}", 0),
        ("smsgw_messages_parts_total{lane=regular}", 5),
        ("smsgw_messages_parts_total{lane=otp}", 1),
        ("smsgw_messages_refused_total{code=insufficient_credits}", 4),
        ("smsgw_messages_final_total{status=DELIVERED}", 7),
        ("smsgw_messages_final_total{status=UNKNOWN}", 1),
        ("smsgw_queue_waiting{lane=express}", 4),
        ("smsgw_express_missed_total", 1),
        ("smsgw_submits_total{outcome=accepted,provider=mock}", 1),
        ("smsgw_submits_total{outcome=refused,provider=mock}", 1),
        ("smsgw_submit_duration_seconds_count{provider=mock}", 2),
        ("smsgw_submit_duration_seconds_bucket{le=0.025,provider=mock}", 1),
        ("smsgw_provider_up{provider=mock}", 1),
        ("smsgw_receipts_total{result=applied}", 2),
        ("smsgw_receipts_parked", 3),
        ("smsgw_inbound_total{provider=mock}", 1),
        ("smsgw_otp_total{result=confirmed}", 1),
        ("smsgw_otp_late_after_503_total{provider=mock}", 1),
        ("smsgw_otp_cancels_total{provider=mock}", 1),
        ("smsgw_turn_duration_seconds_sum", 0.004),
        ("smsgw_turn_items_bucket{le=10.0}", 0),
        ("smsgw_turn_items_bucket{le=20.0}", 1),
        ("smsgw_commit_duration_seconds_bucket{le=0.0001}", 0),
        ("smsgw_commit_duration_seconds_bucket{le=0.00025}", 1),
        ("smsgw_quarantined_total", 1),
        ("smsgw_shard_up{shard=0}", 0),
        ("smsgw_wal_bytes{shard=0}", 4096),
        ("smsgw_http_requests_total{method=GET,route=/v1/messages/{id},status=200}", 1),
        ("smsgw_http_requests_total{method=GET,route=/v1/messages/{id},status=404}", 1),
        ("smsgw_http_request_duration_seconds_count{route=/v1/messages/{id}}", 2),
        ("smsgw_event_loop_lag_seconds_count", 1),
        ("smsgw_clock_jumps_total", 1),
    ],
)
def test_each_method_shows_on_the_page(sample: str, value: float) -> None:
    assert samples(after_everything())[sample] == value


def test_the_page_has_these_metrics_with_these_labels_and_no_other() -> None:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(after_everything().render().decode()):
        for sample in family.samples:
            name = re.sub("_(bucket|count|sum)$", "", sample.name)
            found.setdefault(name, set()).update(set(sample.labels) - {"le"})
    assert found == LABELS


def test_the_build_is_named() -> None:
    (build,) = [name for name in samples(Metrics()) if name.startswith("smsgw_build_info")]
    assert f"version={__version__}" in build


def test_what_is_known_beforehand_begins_at_zero() -> None:
    page = samples(Metrics())
    for lane in LANES:
        assert page[f"smsgw_messages_accepted_total{{lane={lane}}}"] == 0
        assert page[f"smsgw_messages_parts_total{{lane={lane}}}"] == 0
    for status in FINAL_STATUSES:
        assert page[f"smsgw_messages_final_total{{status={status}}}"] == 0


def test_made_up_methods_make_no_series_of_their_own() -> None:
    metrics = Metrics()
    before = len(samples(metrics))
    for number in range(100):
        metrics.http("unmatched", f"BREW{number}", 405, 0.001)
    page = samples(metrics)
    assert page["smsgw_http_requests_total{method=OTHER,route=unmatched,status=405}"] == 100
    assert len(page) - before == 1 + len(BUCKETS_S) + len(["+Inf", "count", "sum"])


def test_buckets_reach_from_5_ms_to_10_s_and_fine_ones_from_a_tenth_of_a_millisecond() -> None:
    assert (BUCKETS_S[0], BUCKETS_S[-1]) == (0.005, 10)
    assert FINE_BUCKETS_S[0] == 0.0001
    assert sorted(FINE_BUCKETS_S) == list(FINE_BUCKETS_S)


def test_two_gateways_in_one_process_count_apart_and_not_in_the_global_registry() -> None:
    one, other = Metrics(), Metrics()
    one.final("DELIVERED")
    assert samples(other)["smsgw_messages_final_total{status=DELIVERED}"] == 0
    assert not [family for family in REGISTRY.collect() if family.name.startswith("smsgw")]


def test_counting_from_several_threads_loses_nothing() -> None:
    metrics = Metrics()

    def count(_: int) -> None:
        for number in range(500):
            metrics.refused(f"code_{number % 5}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(count, range(4)))
    page = samples(metrics)
    assert [page[f"smsgw_messages_refused_total{{code=code_{n}}}"] for n in range(5)] == [400] * 5


def test_the_page_is_prometheus_text() -> None:
    assert CONTENT_TYPE.startswith("text/plain; version=")
    assert "_created" not in after_everything().render().decode()
