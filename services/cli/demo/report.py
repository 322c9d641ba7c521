"""The demonstration's result, as tables and sentences. Pure: measurements in, text out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from services.cli import output
from services.cli.demo.measuring import Answer, Measurement
from services.cli.output import Column
from services.scoring.statistics import compare

if TYPE_CHECKING:
    from rich.console import RenderableType


def accuracy_table(measurements: Sequence[Measurement]) -> RenderableType:
    columns = [
        Column("HELD-OUT ACCURACY", lambda item: item.title),
        Column("RIGHT", lambda item: f"{item.right}/{item.count}", right=True),
        Column("SHARE", lambda item: f"{item.accuracy:.3f}", right=True),
        Column("95% INTERVAL", lambda item: f"{item.interval.low:.3f} to {item.interval.high:.3f}", right=True),
        Column("", lambda item: "█" * round(item.accuracy * 20)),
    ]
    return output.table(columns, measurements)


def answers_table(measurements: Sequence[Measurement], count: int) -> RenderableType:
    """The first `count` problems with every model's answer; a right one is marked."""
    rows = [[item.answers[row] for item in measurements] for row in range(min(count, *map(_length, measurements)))]
    columns = [Column("QUESTION", lambda row: row[0].question)]
    for index, item in enumerate(measurements):
        columns.append(Column(item.title.upper(), lambda row, index=index: _marked(row[index])))
    columns.append(Column("ANSWER", lambda row: row[0].expected))
    return output.table(columns, rows)


def beyond_intervals(before: Measurement, after: Measurement) -> bool:
    """Whether `after` is better by more than both intervals."""
    return after.accuracy > before.accuracy and not after.interval.overlaps(before.interval)


def verdict(before: Measurement, after: Measurement) -> str:
    """What changed from one measurement to the next, problem by problem."""
    gain = after.accuracy - before.accuracy
    overlap = "do not overlap" if not after.interval.overlaps(before.interval) else "overlap"
    said = f"{after.title} against {before.title}: {gain:+.3f}; the 95% intervals {overlap}."
    if not before.answers or len(before.answers) != len(after.answers):
        return said
    paired = compare([item.right for item in before.answers], [item.right for item in after.answers])
    changed = f"{paired.gained} problems newly right, {paired.lost} newly wrong"
    return f"{said} {changed} (McNemar p = {paired.p_value:.1g})."


def _length(measurement: Measurement) -> int:
    return len(measurement.answers)


def _marked(answer: Answer) -> RenderableType:
    from rich.text import Text

    mark = ("✓ ", "green") if answer.right else ("✗ ", "red")
    return Text.assemble(mark, answer.completion or "(nothing)")
