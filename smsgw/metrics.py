"""What the gateway counts and measures, in Prometheus' words.

No label holds a client, a number or a raw path, so the number of series stays small. Counting is
done here, on the event loop's thread: one dictionary access and one addition, where the library's
own counters and histograms take a lock and several calls, which a message pays ten times over. The
library writes the page.
"""

import platform
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Gauge,
    Info,
    generate_latest,
)
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from smsgw import __version__

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST

BUCKETS_S: Final = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
# A turn takes about 5 ms and a good commit 0.2 ms: these need to be told apart below 5 ms.
FINE_BUCKETS_S: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, *BUCKETS_S)
ITEMS_BUCKETS: Final = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)

LANES: Final = ("regular", "express", "otp")
FINAL_STATUSES: Final = ("DELIVERED", "FAILED_PERM", "EXPIRED", "CANCELLED", "UNKNOWN")
METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})


class _Gauges(dict[tuple[object, ...], Gauge]):
    """The children of a gauge by their label values, each made when first asked for."""

    def __init__(self, gauge: Gauge) -> None:
        self._gauge = gauge

    def __missing__(self, values: tuple[object, ...]) -> Gauge:
        child = self._gauge.labels(*values)
        self[values] = child
        return child

    def forget(self, *values: str) -> None:
        """Show a child no more."""
        if self.pop(values, None) is not None:
            self._gauge.remove(*values)


class _Counts(Collector):
    """A counter with labels; ``known`` values show their zero before the first event."""

    def __init__(self, name: str, says: str, labels: Sequence[str], known: Iterable[str]) -> None:
        self._family = (name, says, labels)
        self.counts: defaultdict[tuple[object, ...], int] = defaultdict(int)
        for value in known:
            self.counts[value,] = 0

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        name, says, labels = self._family
        family = CounterMetricFamily(name, says, labels=labels)
        for values, count in list(self.counts.items()):
            family.add_metric([str(value) for value in values], count)
        yield family


class _Durations(Collector):
    """A histogram with labels."""

    def __init__(
        self, name: str, says: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> None:
        self._family = (name, says, labels)
        self._buckets = buckets
        self._rows: dict[tuple[object, ...], list[float]] = {}
        if not labels:
            self._row(())

    def _row(self, values: tuple[object, ...]) -> list[float]:
        # One count for each bucket, one for what is above all of them, and the sum.
        row = self._rows[values] = [0.0] * (len(self._buckets) + 2)
        return row

    def observe(self, value: float, *values: object) -> None:
        """Take a measurement."""
        row = self._rows.get(values) or self._row(values)
        row[bisect_left(self._buckets, value)] += 1
        row[-1] += value

    def collect(self) -> Iterator[Metric]:
        """The measurements up to now."""
        name, says, labels = self._family
        family = HistogramMetricFamily(name, says, labels=labels)
        bounds = [*(str(float(bound)) for bound in self._buckets), "+Inf"]
        for values, row in list(self._rows.items()):
            counts = accumulate(row[:-1])
            family.add_metric(
                [str(value) for value in values],
                buckets=list(zip(bounds, counts, strict=True)),
                sum_value=row[-1],
            )
        yield family


class Metrics:
    """The measurements of one gateway, in a registry of its own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        Info("smsgw_build", "Versions of what runs.", registry=self._registry).info(
            {"version": __version__, "python": platform.python_version()}
        )
        counter, gauge, histogram = self._counter, self._gauge, self._histogram

        self._accepted = counter(
            "messages_accepted", "Messages whose credit is held.", "lane", known=LANES
        )
        self._parts = counter("messages_parts", "Parts of accepted messages.", "lane", known=LANES)
        self._refused = counter("messages_refused", "Messages refused, by error code.", "code")
        self._final = counter(
            "messages_final",
            "Messages that reached a final status.",
            "status",
            known=FINAL_STATUSES,
        )
        self._queue_waiting = _Gauges(gauge("queue_waiting", "Messages that wait.", "lane"))
        self._express_missed = counter("express_missed", "Express messages handed over late.")

        self._submits = counter("submits", "Parts handed to an operator.", "provider", "outcome")
        self._submit_duration = histogram(
            "submit_duration_seconds", "Hand-over to answer.", BUCKETS_S, "provider"
        )
        self._provider_up = _Gauges(gauge("provider_up", "1 if usable.", "provider"))
        self._receipts = counter("receipts", "Receipts, by what they did.", "result")
        self._receipts_parked = gauge("receipts_parked", "Receipts for no known message yet.")
        self._inbound = counter("inbound", "Messages that handsets sent.", "provider")
        self._otp = counter("otp", "OTP requests, by their end.", "result")
        self._otp_cancels = counter(
            "otp_cancels", "OTPs that an operator was asked to take back.", "provider"
        )
        self._otp_late = counter(
            "otp_late_after_503", "OTPs taken after we had answered 503.", "provider"
        )

        self._turn_duration = histogram("turn_duration_seconds", "Whole turns.", FINE_BUCKETS_S)
        self._turn_items = histogram("turn_items", "Items of a turn.", ITEMS_BUCKETS)
        self._commit_duration = histogram("commit_duration_seconds", "Commits.", FINE_BUCKETS_S)
        self._quarantined = counter("quarantined", "Outcomes that could not be applied.")
        self._shard_up = _Gauges(gauge("shard_up", "1 if it accepts work.", "shard"))
        self._wal_bytes = _Gauges(gauge("wal_bytes", "Size of the write-ahead log.", "shard"))
        self._round_trips = counter("postgres_round_trips", "Calls to PostgreSQL servers.")

        self._http = counter("http_requests", "Answers.", "method", "route", "status")
        self._http_duration = histogram(
            "http_request_duration_seconds", "Request to answer.", BUCKETS_S, "route"
        )
        self._loop_lag = histogram(
            "event_loop_lag_seconds", "How late the event loop is.", FINE_BUCKETS_S
        )
        self._clock_jumps = counter("clock_jumps", "Jumps of the wall clock.")

    def accepted(self, lane: str, messages: int = 1, parts: int = 1) -> None:
        """Count accepted messages of a lane and all their parts."""
        self._accepted[lane,] += messages
        self._parts[lane,] += parts

    def refused(self, code: str, messages: int = 1) -> None:
        """Count messages refused with an error code."""
        self._refused[code,] += messages

    def final(self, status: str, messages: int = 1) -> None:
        """Count messages that reached a final status."""
        self._final[status,] += messages

    def queue_waiting(self, lane: str, messages: int) -> None:
        """Tell how many messages of a lane wait now."""
        self._queue_waiting[lane,].set(messages)

    def express_missed(self, messages: int = 1) -> None:
        """Count express messages handed over after their promised time."""
        self._express_missed[()] += messages

    def submitted(self, provider: str, outcome: str, seconds: float) -> None:
        """Count a part that an operator answered, or did not, and how long that took."""
        self._submits[provider, outcome] += 1
        self._submit_duration.observe(seconds, provider)

    def provider_up(self, provider: str, up: bool) -> None:
        """Tell whether an operator is usable now."""
        self._provider_up[provider,].set(up)

    def provider_gone(self, provider: str) -> None:
        """Say nothing more about an operator that is no longer in the settings."""
        self._provider_up.forget(provider)

    def receipt(self, result: str, receipts: int = 1) -> None:
        """Count receipts by what they did."""
        self._receipts[result,] += receipts

    def receipts_parked(self, receipts: int) -> None:
        """Tell how many receipts wait for their message now."""
        self._receipts_parked.set(receipts)

    def inbound(self, provider: str) -> None:
        """Count a message that a handset sent."""
        self._inbound[provider,] += 1

    def otp(self, result: str) -> None:
        """Count an OTP request by its end."""
        self._otp[result,] += 1

    def otp_cancelled(self, provider: str) -> None:
        """Count an OTP, or a part of one, that an operator was asked to take back."""
        self._otp_cancels[provider,] += 1

    def otp_late_after_503(self, provider: str) -> None:
        """Count an OTP that an operator took after its 503 was decided."""
        self._otp_late[provider,] += 1

    def turn(self, seconds: float, items: int) -> None:
        """Measure a turn of a shard, from its load to the end of its commit."""
        self._turn_duration.observe(seconds)
        self._turn_items.observe(items)

    def commit(self, seconds: float) -> None:
        """Measure a commit."""
        self._commit_duration.observe(seconds)

    def quarantined(self, items: int = 1) -> None:
        """Count outcomes put aside because they could not be applied."""
        self._quarantined[()] += items

    def shard_up(self, shard: int, up: bool) -> None:
        """Tell whether a shard accepts work now."""
        self._shard_up[shard,].set(up)

    def wal_bytes(self, shard: int, size_bytes: int) -> None:
        """Tell how large a shard's write-ahead log is now."""
        self._wal_bytes[shard,].set(size_bytes)

    def round_trips(self, count: int) -> None:
        """Count calls to a database server."""
        self._round_trips[()] += count

    def http(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count and measure an answer.

        Args:
            route: the template, such as ``/v1/messages/{id}``; never the path, which has no end.
            method: as the caller sent it; made-up ones are counted as OTHER.
            status: the HTTP status.
            seconds: from the request's arrival to its answer.
        """
        self._http[method if method in METHODS else "OTHER", route, status] += 1
        self._http_duration.observe(seconds, route)

    def loop_lag(self, seconds: float) -> None:
        """Measure how much later than asked the event loop called us."""
        self._loop_lag.observe(seconds)

    def clock_jumped(self) -> None:
        """Count a jump of the wall clock."""
        self._clock_jumps[()] += 1

    def render(self) -> bytes:
        """Return the page for ``/metrics``; takes milliseconds, so call it in a thread."""
        return generate_latest(self._registry)

    def _counter(
        self, name: str, says: str, *labels: str, known: Iterable[str] = ()
    ) -> defaultdict[tuple[object, ...], int]:
        counts = _Counts(f"smsgw_{name}", says, labels, known)
        if not labels:
            counts.counts[()] = 0
        self._registry.register(counts)
        return counts.counts

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"smsgw_{name}", says, labels, registry=self._registry)

    def _histogram(
        self, name: str, says: str, buckets: Sequence[float], *labels: str
    ) -> _Durations:
        durations = _Durations(f"smsgw_{name}", says, labels, buckets)
        self._registry.register(durations)
        return durations
