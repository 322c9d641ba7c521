"""Rows of what a run reports: points of metrics, lines of its output, samples. `ordinal` counts from 1 in each."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class MetricPoint:
    ordinal: int
    attempt: int
    step: int
    metric: str
    value: float
    observe_time: datetime


@dataclass(frozen=True)
class LogLine:
    ordinal: int
    attempt: int
    text: str
    observe_time: datetime


@dataclass(frozen=True)
class Sample:
    """One completion and its score; `row_index` counts from 0 in the validation version."""

    ordinal: int
    attempt: int
    split: str
    step: int
    row_index: int
    prompt: str
    completion: str
    answer: str
    score: float
    parts: dict[str, float]
    observe_time: datetime
