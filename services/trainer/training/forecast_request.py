"""What is known of a job's data before it starts: rows kept, tokens, steps, and whether the reward fits the answers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from services import rewards
from services.mesh.errors import Violation
from services.mesh.jobs.warnings import JobWarning
from services.trainer.entities import BaseModel, DatasetVersion
from services.trainer.training import data_forecast
from services.trainer.training.data_forecast import Bound, DataForecast
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.training.token_lengths import Files, Kind, Lengths, MeasuringError, TokenLengths

log = logging.getLogger(__name__)

# Of why nothing is known: what others raise may be of any length.
_MOST_CHARACTERS = 500


@dataclass(frozen=True)
class ForecastRequest:
    """A job of which everything else is right. `judged`: its answers to the rows are worth something."""

    plan: LaunchPlan
    params: Any
    judged: bool
    base: BaseModel
    train: DatasetVersion
    validation: DatasetVersion | None


@dataclass(frozen=True)
class Forecast:
    """`forecast` are the fields of a DataForecast; None where nobody has looked."""

    forecast: dict[str, Any] | None = None
    violations: Sequence[Violation] = ()
    warnings: Sequence[JobWarning] = field(default_factory=list)


Forecaster = Callable[[ForecastRequest], Awaitable[Forecast]]


async def no_forecast(job: ForecastRequest) -> Forecast:
    """Look at no rows: for checks without a tokenizer."""
    return Forecast()


class DataForecaster:
    """Use case. What takes too long is said to be unknown; it never keeps a job from being created."""

    def __init__(self, lengths: TokenLengths, files: Files) -> None:
        self._lengths = lengths
        self._files = files

    async def foresee(self, job: ForecastRequest, patience_seconds: float) -> Forecast:
        measured = await asyncio.gather(
            self._train(job, patience_seconds), self._validation(job, patience_seconds), return_exceptions=True
        )
        for one in measured:
            # Whatever is wrong with a look at the rows is no reason to refuse the job.
            if isinstance(one, Exception) and not isinstance(one, MeasuringError):
                log.error("the rows of a job could not be looked at", exc_info=one)
        train, validation = measured
        if isinstance(train, BaseException):
            why = str(train) if isinstance(train, MeasuringError) else f"{type(train).__name__}: {train}"
            known = DataForecast(row_count=job.train.row_count, step_count=job.plan.total_steps)
            return Forecast(asdict(known) | {"unavailable_reason": why[:_MOST_CHARACTERS]})
        return _foreseen(job, train, validation if isinstance(validation, Lengths) else None)

    async def _train(self, job: ForecastRequest, patience_seconds: float) -> Lengths:
        rows = job.plan.task.rows
        return await self._lengths.measure(self._files, job.base, job.train, rows, 0, patience_seconds)

    async def _validation(self, job: ForecastRequest, patience_seconds: float) -> Lengths | None:
        pairs = job.plan.pair_validation
        asked = pairs or job.plan.validation
        if job.validation is None or asked is None:
            return None
        kind: Kind = "preference" if pairs is not None else "question"
        return await self._lengths.measure(self._files, job.base, job.validation, kind, asked.rows, patience_seconds)


def _foreseen(job: ForecastRequest, train: Lengths, validation: Lengths | None) -> Forecast:
    context = job.base.context_length or None
    bound = Bound.of(job.plan, job.params, context)
    found = data_forecast.forecast(job.plan, bound, job.train.row_count, train)
    wrong = data_forecast.violations(found, bound, train)
    warnings = data_forecast.warnings(found, bound, train)
    if validation is not None:
        found, more = data_forecast.with_validation(found, job.plan, validation, context)
        warnings += more
    if job.judged:
        warnings += _misfits(job.params, train.answers)
    warnings += _about_validation(job, validation)
    return Forecast(asdict(found), wrong, warnings)


def _misfits(params: Any, answers: Sequence[str]) -> list[JobWarning]:
    named = {name: getattr(params, name) for name in ("reward", "held_out_reward")}
    return [
        warning
        for name, reward in named.items()
        if reward is not None and (warning := _misfit(name, reward.name, reward.params, answers)) is not None
    ]


def _misfit(what: str, reward: str, params: Mapping[str, Any], answers: Sequence[str]) -> JobWarning | None:
    misfit = rewards.misfit(reward, params, answers)
    if misfit is None:
        return None
    message = f"{what} {reward!r} does not fit the dataset: {misfit.message}"
    return JobWarning(reason="REWARD_MISFIT", message=message, remedy=misfit.remedy, key=what)


def _about_validation(job: ForecastRequest, validation: Lengths | None) -> list[JobWarning]:
    """Held-out rows that are those which are trained; and of who names no reward, answers that `exact` never meets."""
    if job.validation is None:
        return []
    found = []
    if job.validation.name == job.train.name:
        message = f"{job.train.name} is trained on and held out: what is measured says nothing of rows it has not seen"
        remedy = "hold out rows that are not trained on: `rlhf dataset upload … --split validation=0.05`"
        found.append(JobWarning(reason="VALIDATION_NOT_HELD_OUT", message=message, remedy=remedy))
    unnamed = job.plan.validation is not None and job.plan.validation.reward is None
    if validation is not None and unnamed and job.validation.format == "prompt":
        misfit = _misfit("validation", "exact", rewards.complete("exact", {}), validation.answers)
        found += [misfit] if misfit is not None else []
    return found
