"""Dataclass → proto of what runs report, pure."""

from __future__ import annotations

from rlhf.trainer.v1 import trainer_service_pb2
from rlhf.type.v1 import log_line_pb2, metric_point_pb2, sample_pb2

from services.mesh.rpc.wellknown import timestamp
from services.trainer.entities import LogLine, MetricPoint, Sample
from services.trainer.streams.broadcast import Batch


def metric_point(point: MetricPoint) -> metric_point_pb2.MetricPoint:
    return metric_point_pb2.MetricPoint(
        metric=point.metric,
        step=point.step,
        value=point.value,
        observe_time=timestamp(point.observe_time),
        attempt=point.attempt,
        ordinal=point.ordinal,
    )


def metric_points(batch: Batch[MetricPoint]) -> trainer_service_pb2.StreamMetricsResponse:
    points = map(metric_point, batch.items)
    return trainer_service_pb2.StreamMetricsResponse(points=points, last_ordinal=batch.through)


def log_lines(batch: Batch[LogLine]) -> trainer_service_pb2.StreamLogsResponse:
    return trainer_service_pb2.StreamLogsResponse(lines=map(log_line, batch.items), last_ordinal=batch.through)


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
