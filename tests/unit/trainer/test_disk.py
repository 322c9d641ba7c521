"""What a job's files will take."""

from __future__ import annotations

from pathlib import Path

from services.mesh.validation.params import parse
from services.trainer.algorithms import algorithms
from services.trainer.training.disk_estimate import Disk, DiskForecast, check_room, forecast, save_every
from tests.unit.trainer.test_algorithms import plan

MILLION = 1_000_000


def foreseen(
    parameters: int, disk: Disk | None = None, algorithm: str = "sft", **params: object
) -> DiskForecast | None:
    settings = parse(algorithms.get(algorithm).Params, params).checkpoints
    return forecast(plan(algorithm, dict(params)), settings, parameters, disk)


def test_a_forecast_counts_what_is_there_at_one_time() -> None:
    found = foreseen(MILLION, steps=100, save_every_steps=30)
    assert found is not None
    # After 30, 60, 90 and at the end; fp32 weights, and Adam's two moments beside them in the state.
    assert found.save_count == found.checkpoint_count == 4
    assert (found.weights_bytes, found.training_state_bytes) == (4 * MILLION, 12 * MILLION)
    assert found.training_state_count == 3
    assert found.needed_bytes == (4 * 4 + 4 + 3 * 12) * MILLION


def test_how_often_is_saved_where_nobody_says() -> None:
    assert [save_every(steps) for steps in (1, 20, 21, 100, 200, 1000, 1001)] == [0, 0, 20, 20, 20, 100, 101]


def test_retention_and_adapters_take_less() -> None:
    rule = {"keep_best": 1, "keep_last": 1, "keep_training_states": 1}
    found = foreseen(MILLION, steps=100, save_every_steps=10, checkpoints=rule)
    assert found is not None
    assert (found.save_count, found.checkpoint_count, found.training_state_count) == (10, 3, 2)
    adapter = foreseen(MILLION, steps=100, save_every_steps=10, checkpoints=rule, lora={"rank": 4})
    assert adapter is not None and adapter.weights_bytes == 0 and adapter.needed_bytes < found.needed_bytes
    assert foreseen(0, steps=1) is None
    merged = foreseen(MILLION, algorithm="reward_model", steps=1, lora={"rank": 4})
    assert merged is not None
    assert (merged.weights_bytes, merged.training_state_bytes) == (4 * MILLION, 4 * MILLION)
    critic = foreseen(MILLION, algorithm="ppo", steps=1, lora={"rank": 4})
    assert critic is not None and critic.training_state_bytes == (4 + 12) * MILLION


def test_what_surely_does_not_fit_is_refused_with_its_figures(tmp_path: Path) -> None:
    disk = Disk.of(tmp_path / "not-there-yet" / "jobs", f"file://{tmp_path}/artifacts")
    assert disk.holds_artifacts
    fits = foreseen(MILLION, disk, steps=10)
    assert fits is not None and fits.free_bytes and check_room(fits) == []
    huge = foreseen(10**13, disk, steps=10, save_every_steps=1)
    [violation] = check_room(huge)
    assert violation.field == "save_every_steps"
    for figure in ("10 saves", f"{4e13 / 2**30:.2f} GiB", "checkpoints.keep_best", "free"):
        assert figure in violation.description
    [single] = check_room(foreseen(10**13, disk, steps=10))
    assert "smaller model" in single.description


def test_an_object_store_holds_the_checkpoints_elsewhere(tmp_path: Path) -> None:
    assert not Disk.of(tmp_path, "memory://bucket").holds_artifacts
    far = foreseen(MILLION, Disk(tmp_path, holds_artifacts=False), steps=10)
    near = foreseen(MILLION, Disk(tmp_path, holds_artifacts=True), steps=10)
    assert far is not None and near is not None
    assert near.needed_bytes - far.needed_bytes == 4 * MILLION
