"""Trying a reward on given samples before a job is made."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import msgspec

from services import rewards
from services.mesh import names
from services.mesh.artifacts import ArtifactStore
from services.mesh.errors import DeadlineExceeded, FailedPrecondition, InvalidArgument, PlatformError, Violation
from services.trainer.entities import RewardTrial, RewardVerdict
from services.trainer.settings import Settings
from services.trainer.training.job_references import ReferenceLookup, reward_models
from services.trainer.training.request_limits import vetted

MOST_SAMPLES = 256
LARGEST_BYTES = 1 << 20
ROLES = ("system", "user", "assistant")
# Loading a model takes most of it; a call's own deadline is often shorter.
TIMEOUT_SECONDS = 300.0
# Each is a process.
_AT_A_TIME = 2


class RewardTrials:
    """Use case. Scoring happens in a child process, which ends with the call."""

    def __init__(
        self, settings: Settings, environment: Mapping[str, str], look_up: ReferenceLookup, artifacts: ArtifactStore
    ) -> None:
        self._settings = settings
        self._look_up = look_up
        self._artifacts = artifacts
        self._environment = dict(environment)
        self._places = asyncio.Semaphore(_AT_A_TIME)

    async def test(
        self, parent: str, reward_id: str, params: Mapping[str, Any], samples: Sequence[rewards.RewardSample]
    ) -> RewardTrial:
        """Raises InvalidArgument with everything that is wrong, FailedPrecondition where the reward can't work."""
        async with vetted(params):
            trial = await self._trial(parent, reward_id, params, samples)
        async with self._places:
            outcome = msgspec.json.decode(await self._child(msgspec.json.encode(trial)))
        if error := outcome["error"]:
            raise FailedPrecondition(error["reason"], _with_remedy(error), remedy=error["remedy"])
        return RewardTrial([_verdict(one) for one in outcome["verdicts"]], outcome["elapsed_seconds"])

    async def _trial(
        self, parent: str, reward_id: str, params: Mapping[str, Any], samples: Sequence[rewards.RewardSample]
    ) -> dict[str, Any]:
        """Settings of the child process. Raises InvalidArgument with everything that is wrong."""
        found = _check_samples(samples)
        if names.match(names.PROJECT, parent) is None:
            found.insert(0, Violation("parent", f"must be of the form {names.PROJECT}"))
        found += map(_placed, rewards.read(reward_id, params, self._settings.reward_site)[1])
        models = await reward_models({"": (reward_id, params)}, self._look_up, found)
        if found:
            raise InvalidArgument(found)
        return {
            "name": reward_id,
            "params": rewards.complete(reward_id, params),
            "site": asdict(replace(self._settings.reward_site, models=await self._folders(models))),
            "samples": [asdict(replace(sample, metadata=dict(sample.metadata))) for sample in samples],
        }

    async def _folders(self, models: Mapping[str, str]) -> dict[str, str]:
        cache = self._settings.cache_folder / "models"
        return {name: str(await self._artifacts.fetch(sha256, cache)) for name, sha256 in models.items()}

    async def _child(self, trial: bytes) -> bytes:
        # By Popen, which calls vfork: asyncio's loops fork, and gRPC, which many threads of this process run, does not
        # survive that in the child.
        process = subprocess.Popen(  # noqa: ASYNC220, S603 - returns at once; a fixed command
            [self._settings.worker_python, "-m", "services.trainer.verifier", "reward"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=self._environment,
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                output, _ = await asyncio.to_thread(process.communicate, trial)
        except TimeoutError:
            raise DeadlineExceeded("REWARD_TOO_SLOW", f"not done after {TIMEOUT_SECONDS:.0f} s") from None
        finally:
            if process.poll() is None:
                # With whatever it has started; the thread that reads from it ends with it.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if process.returncode != 0:
            message = f"the process that scores died with exit code {process.returncode}; the service's log tells why"
            raise PlatformError("REWARD_DIED", message)
        return output


def _check_samples(samples: Sequence[rewards.RewardSample]) -> list[Violation]:
    if not 1 <= len(samples) <= MOST_SAMPLES:
        return [Violation("samples", f"must be 1 to {MOST_SAMPLES} (got {len(samples)})")]
    size = sum(len(msgspec.json.encode(asdict(sample))) for sample in samples)
    if size > LARGEST_BYTES:
        return [Violation("samples", f"must be at most {LARGEST_BYTES} bytes together (got {size})")]
    return [
        Violation(f"samples.{index}.prompt.{turn}.role", f"must be one of {', '.join(ROLES)} (got {given!r:.60})")
        for index, sample in enumerate(samples)
        for turn, given in enumerate(one["role"] for one in sample.prompt if not isinstance(one, str))
        if given not in ROLES
    ]


def _placed(violation: Violation) -> Violation:
    """As the request names its fields: `reward.name` → `reward_id`, `reward.params.x` → `params.x`."""
    field = violation.field.removeprefix("reward.")
    return Violation("reward_id" if field == "name" else field, violation.description)


def _verdict(found: dict[str, Any]) -> RewardVerdict:
    error = found["error"]
    if error is None:
        return RewardVerdict(found["score"], found["parts"])
    kept = {"code": "FAILED_PRECONDITION", "reason": error["reason"], "message": _with_remedy(error)}
    return RewardVerdict(0.0, {}, kept)


def _with_remedy(error: dict[str, str]) -> str:
    return f"{error['message']}\nWhat to do: {error['remedy']}" if error["remedy"] else error["message"]
