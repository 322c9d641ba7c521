"""A user's own reward, in Python."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from services.mesh.errors import Violation
from services.mesh.validation.params import STRICT_FIELDS, to_json
from services.mesh.validation.partial import collect_violations
from services.rewards import (
    LARGEST_SCORE,
    Judge,
    Reward,
    RewardContext,
    RewardError,
    RewardSample,
    Score,
    is_score,
    rewards,
)
from services.rewards.spec import RewardSite

if TYPE_CHECKING:
    from services.rewards.sandbox.host import RewardSandbox, SandboxSettings

LONGEST_SOURCE = 65_536
_SETTING = "RLHF_TRAINER_CUSTOM_CODE"


@dataclass(frozen=True)
class CustomParams:
    source: Annotated[
        str,
        Field(min_length=1, max_length=LONGEST_SOURCE, description="Python with `def score(samples): …`; see the docs"),
    ]
    source_sha256: Annotated[
        str, Field(pattern="^([0-9a-f]{64})?$", description="of the source in UTF-8; empty: as it is")
    ] = ""
    timeout_seconds: Annotated[
        float, Field(ge=0.1, le=3600, description="of one batch, and of its import, by the clock")
    ] = 60.0
    memory_mib: Annotated[int, Field(ge=64, le=65_536, description="address space of its process")] = 1024
    __pydantic_config__ = STRICT_FIELDS

    def rules(self) -> list[Violation]:
        return collect_violations(self._check_sha256)

    def _check_sha256(self) -> list[Violation]:
        if not self.source_sha256 or self.source_sha256 == self.sha256:
            return []
        return [Violation("source_sha256", f"is not that of the source, {self.sha256}")]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()


@rewards.register("custom")
class Custom(Reward):
    """What a Python function of your own makes of the completions; where the trainer's settings allow it.

    The source defines `def score(samples: list[dict]) -> list[float | dict]`. A sample has `prompt` (messages),
    `completion`, `answer` (or None) and `metadata`; a dict has `score` and `parts`, numbers by name, the same in every
    sample. It runs in a process of its own, with a user and namespaces of its own: the standard library and what is
    installed with the trainer, /tmp, no network, no other file, no other process; what it prints goes nowhere.

    An exception, a hang, NaN, more than fp32 holds or a wrong length ends the job with an error that names the sample.
    Not where a rule does (`regex`, `numeric`, `weighted`): rules need no permission and no process.
    """

    Params = CustomParams

    @staticmethod
    def check(params: CustomParams, site: RewardSite, field: str, depth: int) -> list[Violation]:
        if site.custom_code != "refuse":
            return []
        message = f"a user's own code does not run here; whoever runs the trainer allows it with {_SETTING}=allow"
        return [Violation(f"{field}.source", message)]

    @staticmethod
    def complete(params: CustomParams) -> dict[str, Any]:
        return to_json(replace(params, source_sha256=params.sha256))

    @staticmethod
    def open(params: CustomParams, surroundings: RewardContext) -> Judge:
        from services.rewards.sandbox.host import SandboxSettings

        mode = surroundings.site.custom_code
        if mode == "refuse":
            raise RewardError(f"{_SETTING} does not allow a user's own code", reason="REWARD_NOT_ALLOWED")
        memory_bytes = params.memory_mib << 20
        settings = SandboxSettings(params.source, True, memory_bytes, params.timeout_seconds)
        return _Caged(settings, surroundings.check, may_be_bare=mode == "allow-unisolated")


class _Caged:
    def __init__(self, settings: SandboxSettings, check: Callable[[], None], *, may_be_bare: bool) -> None:
        self._settings = settings
        self._check = check
        # verl's reward workers score in many threads at a time; a cage answers one question after the other.
        self._lock = threading.Lock()
        self._cage = self._started(may_be_bare)

    def _started(self, may_be_bare: bool) -> RewardSandbox:
        from services.rewards.sandbox.host import RewardSandbox

        try:
            return RewardSandbox(self._settings, self._check)
        except RewardError as error:
            if error.reason != "REWARD_NOT_ISOLATED" or not may_be_bare:
                raise
            self._settings = replace(self._settings, isolated=False)
            return RewardSandbox(self._settings, self._check)

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        from services.rewards.judges.payload import plain
        from services.rewards.sandbox.host import SandboxDied, SandboxTimeout

        asked = [plain(sample) for sample in samples]
        with self._lock:
            try:
                given = self._cage.ask(asked)
            except (SandboxTimeout, SandboxDied) as error:
                raise self._blamed(asked, error) from None
        if not isinstance(given, list) or len(given) != len(samples):
            what = f"{len(given)} scores" if isinstance(given, list) else f"a {type(given).__name__}"
            raise RewardError(f"its code returned {what} for {len(samples)} samples")
        return [_score(one, index) for index, one in enumerate(given)]

    def _blamed(self, samples: list[dict[str, Any]], cause: Exception) -> RewardError:
        """Which sample it hung on or died of: each again by itself, in a new process, until it does so again."""
        from services.rewards.sandbox.host import RewardSandbox, SandboxDied, SandboxTimeout

        seconds = self._settings.timeout_seconds
        why = (
            f"did not answer within {seconds:g} s"
            if isinstance(cause, SandboxTimeout)
            else f"died ({self._cage.died()})"
        )
        self._cage.close()
        give_up = time.monotonic() + 2 * seconds
        self._cage = RewardSandbox(self._settings, self._check)
        for index, sample in enumerate(samples):
            if time.monotonic() > give_up:
                break
            try:
                self._cage.ask([sample])
            except (SandboxTimeout, SandboxDied):
                return RewardError(f"its code {why}", index)
            except RewardError:
                continue
        return RewardError(f"its code {why} for a batch of {len(samples)} samples")

    def close(self) -> None:
        self._cage.close()


def _score(given: Any, index: int) -> Score:
    from services.rewards.judges.score_endpoint import wrong_parts

    one = given if isinstance(given, dict) else {"score": given}
    parts = one.get("parts", {})
    if set(one) - {"score", "parts"} or not isinstance(parts, dict):
        raise RewardError(f"its code returned {str(given)[:100]}; a dict has score and parts", index)
    if not all(map(is_score, (one.get("score"), *parts.values()))):
        wanted = f"every score and part is a finite number, ±{LARGEST_SCORE:.2g} at most"
        raise RewardError(f"its code returned {str(given)[:100]}, and {wanted}", index)
    if wrong := wrong_parts(parts):
        raise RewardError(f"its code returned {wrong}", index)
    return Score(float(one["score"]), {name: float(value) for name, value in parts.items()})
