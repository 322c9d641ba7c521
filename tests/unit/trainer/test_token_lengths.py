"""How many questions about rows are kept, and how many wait."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services.mesh.errors import FailedPrecondition
from services.mesh.validation.params import parse
from services.trainer.algorithms import algorithms
from services.trainer.entities import BaseModel, DatasetVersion
from services.trainer.training.forecast_request import DataForecaster, ForecastRequest
from services.trainer.training.token_lengths import Asking, Lengths, MeasuringError, TokenLengths
from tests.unit.trainer.test_data_forecast import planned

# More than are kept.
MANY = 30


class Models:
    """Which say that there are none, once `open` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked = 0

    async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
        self.asked += 1
        await self.open.wait()
        raise FailedPrecondition("GONE", "the model is gone")

    async def part(self, name: str, offset: int, size: int) -> bytes:
        raise AssertionError("nobody gets so far")


async def test_who_asks_while_many_are_measured_is_turned_away_at_once(tmp_path: Path) -> None:
    models = Models()
    lengths = TokenLengths(Asking("python", {}), models, tmp_path)
    base = BaseModel("m", "0", 0, 0)

    async def ask(number: int) -> Lengths:
        version = DatasetVersion(str(number), "messages", 1, 1, None, sha256=str(number))
        return await lengths.measure(models, base, version, "messages", 0, 60.0)

    asking: list[asyncio.Task[Any]] = [asyncio.ensure_future(ask(number)) for number in range(MANY)]
    done, waiting = await asyncio.wait(asking, timeout=0.2)
    assert done and waiting, "some wait, some do not"
    for task in done:
        assert isinstance(task.exception(), MeasuringError) and "many other jobs" in str(task.exception())
    models.open.set()
    await asyncio.wait(waiting)
    assert models.asked == len(waiting)
    with pytest.raises(MeasuringError, match="the model is gone"):
        await ask(MANY)


async def test_an_error_that_nobody_foresaw_is_said_and_bounded(tmp_path: Path) -> None:
    class Broken(Models):
        async def files(self, model: BaseModel, paths: tuple[str, ...]) -> dict[str, bytes]:
            raise RuntimeError("no such index" * 1000)

    broken, (plan, _) = Broken(), planned("sft", 1, batch_size=1)
    version = DatasetVersion("v", "messages", 1, 1, None)
    job = ForecastRequest(plan, None, False, BaseModel("m", "0", 0, 0), version, None)
    found = await DataForecaster(TokenLengths(Asking("python", {}), broken, tmp_path), broken).foresee(job, 60.0)
    assert found.forecast is not None
    why = found.forecast["unavailable_reason"]
    assert why.startswith("RuntimeError: no such index") and len(why) == 500


async def test_held_out_rows_that_can_say_nothing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are trained on, and answers that `exact`, which scores where no reward is named, never meets."""
    gsm8k = ["so she has\n#### 72"] * 8

    async def measure(*asked: Any) -> Lengths:
        return Lengths([10] * 8, answers=gsm8k)

    lengths, (plan, _) = TokenLengths(Asking("python", {}), Models(), tmp_path), planned("sft", 8, 8, batch_size=1)
    monkeypatch.setattr(lengths, "measure", measure)
    trained = DatasetVersion("trained", "messages", 8, 1, None)
    given = parse(algorithms.get("sft").Params, {}).fitted(4096)

    async def told(held_out: DatasetVersion) -> dict[str, str]:
        job = ForecastRequest(plan, given, False, BaseModel("m", "0", 0, 4096), trained, held_out)
        found = await DataForecaster(lengths, Models()).foresee(job, 60.0)
        return {warning.reason: warning.remedy for warning in found.warnings}

    assert (await told(trained)).keys() == {"VALIDATION_NOT_HELD_OUT"}
    remedies = await told(DatasetVersion("questions", "prompt", 8, 1, 8))
    assert remedies.keys() == {"REWARD_MISFIT"} and "numeric" in remedies["REWARD_MISFIT"]
