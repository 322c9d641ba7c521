"""What a user is told of a run that failed, and what makes it worth another try."""

from __future__ import annotations

import pytest

from services.trainer.training.handler import TrainingHandler
from services.trainer.verl.failures import RayUnreachableError, explain


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RayUnreachableError("AuthenticationError: whatever"), "RAY_UNREACHABLE"),
        (RuntimeError("Failed to get node info … WrongClusterID: Perhaps the client …"), "RAY_UNREACHABLE"),
        (ConnectionError("Could not find any running Ray instance"), "RAY_UNREACHABLE"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), "DISK_FULL"),
        (OSError(28, "No space left on device"), "DISK_FULL"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "DISK_FULL"),
        (ModuleNotFoundError("No module named 'vllm'"), "ROLLOUT_ENGINE_MISSING"),
        (ImportError("FlashAttention2 has been toggled on, but the package flash_attn is not"), "ATTENTION_MISSING"),
        (ValueError("learning rate"), "TRAINING_FAILED"),
    ],
)
def test_reason(error: Exception, reason: str) -> None:
    found = explain(error)
    assert found.reason == reason
    assert bool(found.remedy) == (reason != "TRAINING_FAILED")


def test_a_worker_that_died_is_told_with_what_ray_says_of_it() -> None:
    class ActorDiedError(Exception):
        pass

    text = (
        "The actor died unexpectedly before finishing this task.\n\tclass_name: W\nThe actor is dead because its worker"
    )
    text += " process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker exits with signal 9.\nmore"
    found = explain(ActorDiedError(text))
    assert found.reason == "WORKER_DIED" and "memory" in found.remedy and "log" not in found.remedy
    assert found.message == (
        "ActorDiedError: The actor died unexpectedly before finishing this task. Worker exits with signal 9."
    )


def test_what_is_not_the_jobs_fault_is_tried_again_and_what_would_fail_again_is_not() -> None:
    assert "RAY_UNREACHABLE" in TrainingHandler.deaths.ends
    assert not {"DISK_FULL", "OUT_OF_MEMORY", "TRAINING_FAILED"} & TrainingHandler.deaths.ends
