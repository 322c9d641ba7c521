"""What is counted and timed. Names are those of OpenTelemetry's semantic conventions where they have one.

A process that exports nothing counts nothing. Attributes have few values each: kinds, states, RPCs and route templates,
never names of resources or paths as they were sent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from operator import add

from opentelemetry.metrics import CallbackOptions, Histogram, Meter, NoOpMeter, Observation

__all__ = ["Observation"]

# What an observed figure is asked for at each export, in the exporter's own thread.
Source = Callable[[], Iterable[Observation]]
# Seconds, as the conventions advise for calls and requests.
_CALLS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
_JOBS = (1, 5, 15, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 48 * 3600)

# Figures that are read when they are asked for: unit, description, and what several sources make together, by name.
OBSERVED: Mapping[str, tuple[str, str, Callable[[float, float], float]]] = {
    "db.client.connection.count": ("{connection}", "connections of the pool, by state", add),
    "db.client.connection.max": ("{connection}", "connections that the pool may open", add),
    "db.client.connection.pending_requests": ("{request}", "who waits for a connection", add),
    "rlhf.job.open": ("{job}", "jobs that have not ended, by kind and state", add),
    "rlhf.job.oldest_queued": ("s", "how long the job that has waited longest waits, by kind", max),
    "rlhf.event.unpublished": ("{event}", "events that wait for NATS", add),
    "rlhf.checkpoint.count": ("{checkpoint}", "checkpoints, by state", add),
    "rlhf.spool.unread": ("By", "bytes of followed runs that are not stored yet", add),
    "rlhf.spool.delay": ("s", "since when a followed run has not been read to its end; the longest", max),
    "rlhf.spool.followed": ("{run}", "runs that this worker follows", add),
}
_sources: dict[str, list[Source]] = {name: [] for name in OBSERVED}


class Instruments:
    """The instruments of one meter."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, description: str, buckets: Iterable[float] | None = None) -> Histogram:
            boundaries = list(buckets) if buckets is not None else None
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=boundaries)

        self.rpc_duration = histogram("rpc.server.call.duration", "s", "RPCs by method and code", _CALLS)
        self.open_streams = meter.create_up_down_counter("rlhf.rpc.open_streams", "{stream}", "open streams by method")
        self.http_duration = histogram("http.server.request.duration", "s", "HTTP requests by route", _CALLS)
        self.http_active = meter.create_up_down_counter("http.server.active_requests", "{request}", "open requests")
        self.http_received = meter.create_counter("rlhf.http.received", "By", "bytes of request bodies by route")
        self.http_sent = meter.create_counter("rlhf.http.sent", "By", "bytes of answers by route")
        self.sent_events = meter.create_counter("messaging.client.sent.messages", "{message}", "events published")
        self.consumed_events = meter.create_counter(
            "messaging.client.consumed.messages", "{message}", "events that took effect or were known already"
        )
        self.failed_deliveries = meter.create_counter("rlhf.event.failed_deliveries", "{event}", "to be tried again")
        self.dead_letters = meter.create_counter("rlhf.event.dead_letters", "{event}", "events given up")
        self.job_duration = histogram("rlhf.job.duration", "s", "jobs that ended, from their start, by state", _JOBS)
        self.job_retries = meter.create_counter("rlhf.job.retries", "{attempt}", "attempts to be made again")
        self.uploaded = meter.create_counter("rlhf.upload.received", "By", "bytes of uploads taken in")
        for name, (unit, description, _) in OBSERVED.items():
            meter.create_observable_gauge(name, [partial(_observe, name)], unit, description)


def _observe(name: str, _: CallbackOptions) -> Iterable[Observation]:
    combine = OBSERVED[name][2]
    found: dict[frozenset[tuple[str, object]], Observation] = {}
    for source in tuple(_sources[name]):
        for one in source():
            key = frozenset((one.attributes or {}).items())
            value = combine(found[key].value, one.value) if key in found else one.value
            found[key] = Observation(value, one.attributes)
    return found.values()


_figures = Instruments(NoOpMeter("rlhf"))
_counting = False


def instruments() -> Instruments:
    return _figures


def enabled() -> bool:
    """Whether this process exports figures at all."""
    return _counting


@contextlib.contextmanager
def counting(meter: Meter) -> Iterator[None]:
    """From here to the end of the block what is counted goes to `meter`."""
    global _figures, _counting
    before = _figures, _counting
    _figures, _counting = Instruments(meter), True
    try:
        yield
    finally:
        _figures, _counting = before


@contextlib.contextmanager
def observed(name: str, source: Source) -> Iterator[None]:
    """`source` is asked for `name`, one of OBSERVED, as long as the block lasts; it must not block or raise."""
    _sources[name].append(source)
    try:
        yield
    finally:
        _sources[name].remove(source)
