"""Dataclass → proto of what runs report, pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

from rlhf.type.v1 import log_line_pb2, metric_point_pb2, sample_pb2

from services.mesh.rpc.wellknown import timestamp
from services.mesh.streams.broadcast import Batch
from services.mesh.streams.model import LogLine, MetricPoint, Sample

MetricsMessage = TypeVar("MetricsMessage")
LogsMessage = TypeVar("LogsMessage")


class BatchMessages(Generic[MetricsMessage, LogsMessage]):
    """Messages of a service's StreamMetrics and StreamLogs. Each is made once, however many streams send its batch."""

    def __init__(self, metrics: Callable[..., MetricsMessage], logs: Callable[..., LogsMessage]) -> None:
        self._metrics = metrics
        self._logs = logs
        # Each is forgotten with its batch.
        self._messages: WeakKeyDictionary[Batch[Any], Any] = WeakKeyDictionary()

    def metrics(self, batch: Batch[MetricPoint]) -> MetricsMessage:
        if batch not in self._messages:
            points = map(metric_point, batch.items)
            self._messages[batch] = self._metrics(points=points, last_ordinal=batch.through)
        return self._messages[batch]

    def logs(self, batch: Batch[LogLine]) -> LogsMessage:
        if batch not in self._messages:
            self._messages[batch] = self._logs(lines=map(log_line, batch.items), last_ordinal=batch.through)
        return self._messages[batch]


def metric_point(point: MetricPoint) -> metric_point_pb2.MetricPoint:
    return metric_point_pb2.MetricPoint(
        metric=point.metric,
        step=point.step,
        value=point.value,
        observe_time=timestamp(point.observe_time),
        attempt=point.attempt,
        ordinal=point.ordinal,
    )


def log_line(line: LogLine) -> log_line_pb2.LogLine:
    return log_line_pb2.LogLine(
        text=line.text, observe_time=timestamp(line.observe_time), attempt=line.attempt, ordinal=line.ordinal
    )


def sample(row: Sample) -> sample_pb2.Sample:
    return sample_pb2.Sample(
        split=row.split,
        step=row.step,
        row_index=row.row_index,
        prompt=row.prompt,
        completion=row.completion,
        answer=row.answer,
        score=row.score,
        parts=row.parts,
        observe_time=timestamp(row.observe_time),
        attempt=row.attempt,
        ordinal=row.ordinal,
    )
