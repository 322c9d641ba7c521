"""What a job measured on the held-out problems, read back from the mesh as anybody can."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from services.cli import display
from services.cli.jobkit import reports, views
from services.cli.session import collect
from services.mesh.errors import FailedPrecondition
from services.scoring.statistics import Interval, wilson

if TYPE_CHECKING:
    from rlhf.type.v1.metric_point_pb2 import MetricPoint
    from rlhf.type.v1.sample_pb2 import Sample

    from services.client import AsyncClient


@dataclass(frozen=True)
class Answer:
    """One held-out problem and what the model made of it."""

    question: str
    completion: str
    expected: str
    right: bool


@dataclass(frozen=True)
class Measurement:
    """A model on the held-out problems, at one step of a job. `answers` are in the order of the rows."""

    title: str
    right: int
    count: int
    answers: tuple[Answer, ...]

    @property
    def accuracy(self) -> float:
        return self.right / self.count

    @property
    def interval(self) -> Interval:
        """Wilson's, 95 %."""
        return wilson(self.right, self.count)


async def measured(client: AsyncClient, job: str, step: int, title: str, questions: Sequence[str]) -> Measurement:
    """From the job's metrics and samples at `step`. `questions` are the held-out ones, by row.

    Raises FailedPrecondition where it measured nothing there.
    """
    points = views.effective(await reports.stored_points(client.training_jobs, job, ["validation/score/*"]))
    means = _at(points, "validation/score/mean", step)
    counts = _at(points, "validation/score/count", step)
    if not means or not counts:
        raise FailedPrecondition("NOT_MEASURED", f"{job} has no held-out score at step {step}")
    count = round(counts[-1])
    answers = [_answer(sample, questions) for sample in await samples(client, job, step)]
    return Measurement(title, round(means[-1] * count), count, tuple(answers))


def questions(file: Path) -> list[str]:
    """The question of each row of a prompt file."""
    with file.open(encoding="utf-8") as lines:
        return [json.loads(line)["prompt"][-1]["content"] for line in lines]


async def samples(client: AsyncClient, job: str, step: int) -> list[Sample]:
    """The validation samples of a step, each row once, by row."""
    found = await collect(client.training_jobs.samples(job, step=step, split="validation"))
    newest = {sample.row_index: sample for sample in found}
    return [newest[row] for row in sorted(newest)]


async def training_seconds(client: AsyncClient, job: str, metric: str) -> tuple[float, int]:
    """How long the steps of a job took, start-up and checkpoints left out, and how many there were.

    Between the reports of the first and the last step, and one step more for the first.
    """
    points = views.effective(await reports.stored_points(client.training_jobs, job, [metric]))
    if len(points) < 2:
        raise FailedPrecondition("NOT_MEASURED", f"{job} reported {metric} fewer than twice")
    spanned = display.seconds(points[-1].observe_time) - display.seconds(points[0].observe_time)
    steps = points[-1].step - points[0].step
    return spanned * (steps + 1) / steps, steps + 1


def _at(points: Sequence[MetricPoint], metric: str, step: int) -> list[float]:
    return [point.value for point in points if point.metric == metric and point.step == step]


def _answer(sample: Sample, questions: Sequence[str]) -> Answer:
    completion = display.one_line(sample.completion)
    return Answer(questions[sample.row_index], completion, sample.answer, sample.score == 1)
