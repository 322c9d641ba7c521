"""Which checkpoints stay: the rule, and what the check refuses."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from services.trainer.algorithms.retention import CheckpointSettings, check_retention
from services.trainer.checkpoints.retention import reason, settings_of, surplus
from services.trainer.entities import Checkpoint, CheckpointState

SCORE = "validation/score/mean"


def checkpoint(step: int, score: float | None, state: str = "READY") -> Checkpoint:
    return Checkpoint(
        job_uid=UUID(int=0),
        step=step,
        name=f"step-{step}",
        attempt=1,
        kind="full",
        state=CheckpointState(state),
        base_model="",
        manifest_sha256="",
        size_bytes=0,
        metrics={} if score is None else {SCORE: score},
        parents=[],
        training_state_path="",
        training_state_sha256="",
        create_time=datetime.now(UTC),
    )


def kept(scores: list[float | None], in_use: tuple[str, ...] = (), **settings: object) -> list[int]:
    """Steps that stay, of checkpoints 1, 2, 3 … with these scores."""
    found = [checkpoint(step, score) for step, score in enumerate(scores, start=1)]
    rule = CheckpointSettings(**{"metric": SCORE, **settings})  # type: ignore[arg-type]
    gone = {one.step for one in surplus(found, rule, frozenset(in_use))}
    return [one.step for one in found if one.step not in gone]


def test_all_stay_unless_something_else_is_asked_for() -> None:
    assert kept([0.1, 0.2, None]) == [1, 2, 3]
    assert settings_of({}) == CheckpointSettings()


def test_the_best_and_the_last_stay() -> None:
    scores: list[float | None] = [0.1, 0.9, 0.5, 0.8, 0.2]
    assert kept(scores, keep_best=2) == [2, 4, 5]
    assert kept(scores, keep_best=2, mode="min") == [1, 5]
    assert kept(scores, keep_best=0) == [5]
    assert kept(scores, keep_best=0, keep_last=2) == [4, 5]
    assert kept(scores, keep_best=99) == [1, 2, 3, 4, 5]


def test_what_has_no_value_ranks_last_and_of_equals_the_newer_stays() -> None:
    assert kept([math.nan, 0.1, None, None], keep_best=1) == [2, 4]
    assert kept([0.5, 0.5, 0.1], keep_best=1) == [2, 3]


def test_nothing_goes_while_nothing_says_which_is_best() -> None:
    assert kept([None, math.nan, None], keep_best=1) == [1, 2, 3]


def test_what_is_in_use_stays() -> None:
    assert kept([0.1, 0.2, 0.3], keep_best=0, in_use=("step-1",)) == [1, 3]


def test_only_ready_ones_count_and_go() -> None:
    found = [checkpoint(1, 0.9), checkpoint(2, 0.1, "VERIFYING"), checkpoint(3, 1.0, "CORRUPT")]
    assert surplus(found, CheckpointSettings(keep_best=0), frozenset()) == []


@given(st.lists(st.none() | st.floats(allow_nan=True)), st.integers(0, 5), st.integers(1, 5))
def test_the_newest_always_stays_and_never_more_than_asked_for(
    scores: list[float | None], keep_best: int, keep_last: int
) -> None:
    left = kept(scores, keep_best=keep_best, keep_last=keep_last)
    assert left[-1:] == list(range(1, len(scores) + 1))[-1:]
    unranked = keep_best > 0 and all(score is None or math.isnan(score) or math.isinf(score) for score in scores)
    assert unranked or len(left) <= keep_best + keep_last


def test_the_check_refuses_what_would_keep_something_else() -> None:
    def fields(has_validation: bool, **settings: object) -> list[str]:
        return [v.field for v in check_retention(CheckpointSettings(**settings), has_validation)]  # type: ignore[arg-type]

    assert fields(False) == fields(False, keep_best=0) == fields(True, keep_best=3) == []
    assert fields(True, keep_last=3) == ["checkpoints.keep_last"]
    assert fields(False, keep_best=3, metric="train/loss") == ["checkpoints.keep_best", "checkpoints.metric"]


def test_the_reason_says_the_rule() -> None:
    assert reason(CheckpointSettings(keep_best=0)) == "the job keeps the newest"
    whole = reason(CheckpointSettings(keep_best=2, keep_last=3, metric=SCORE, mode="min"))
    assert whole == f"the job keeps the 2 of the lowest {SCORE}, and the newest 3"
