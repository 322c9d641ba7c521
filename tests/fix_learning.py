"""A task whose ceiling is 1: of a digit, say the one that follows it, 0 after 9.

The base model is fine-tuned on rows of which half are right, the others saying each wrong digit alike. It is then right
about half the time, unsure of every digit, and sure of the form; an answer that ignores the question is worth 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runs.spool import End, Metrics, Record
from services.trainer.runs.records import Checkpoint
from tests.fix_runner import AttemptMaker, PrivateRay, write_rows

# The share of right answers, drawn at temperature 1: of the base at most, and what each algorithm is to reach.
BASE_LEVEL, LEVEL = 0.6, 0.9
DIGITS = range(10)
# Steps whose mean is a run's level: one of 256 answers is within 0.02 of what the policy is worth.
LAST = 3
_SHARED = {"max_prompt_length": 8, "max_response_length": 4, "learning_rate": 2e-3, "steps": 30}
_GROUPS = {**_SHARED, "prompts_per_step": 32, "samples_per_prompt": 8, "micro_batch_size": 256}
_SINGLE = {**_SHARED, "prompts_per_step": 256, "samples_per_prompt": 1, "micro_batch_size": 256}
# What is not named is the algorithm's default. A rate belongs to a number of updates a step: one, and of `gspo` 4, of
# `dapo` 16.
PARAMS: dict[str, dict[str, Any]] = {
    "grpo": _GROUPS,
    "dr_grpo": _GROUPS,
    "gspo": {**_GROUPS, "micro_batch_size": 64, "learning_rate": 1e-3},
    "dapo": {
        **_GROUPS,
        "micro_batch_size": 16,
        "learning_rate": 3e-4,
        "steps": 24,
        "overlong_penalty": 0,
        "max_generation_batches": 40,
    },
    "rloo": _GROUPS,
    "reinforce_plus_plus": _SINGLE,
    "ppo": {**_SINGLE, "critic": {"learning_rate": 2e-3}},
}
_SFT = {"learning_rate": 1e-3, "batch_size": 30, "micro_batch_size": 30, "max_length": 16, "scheduler": "constant"}
# Answers drawn from the checkpoint by a process of its own.
_VALIDATION = {"rows": 200, "max_new_tokens": 4, "temperature": 1.0, "batch_size": 200}


@dataclass(frozen=True)
class Learnt:
    """Shares of right answers: `rewards` of those drawn in each step, `held_out` by step of those drawn from saved
    weights, step 0 being the model that the run started from.
    """

    algorithm: str
    seed: int
    end: End
    rewards: list[float]
    held_out: dict[int, float]
    checkpoint: Path

    @property
    def level(self) -> float:
        return sum(self.rewards[-LAST:]) / len(self.rewards[-LAST:])

    @property
    def before(self) -> float:
        return self.held_out[0]

    @property
    def after(self) -> float:
        return self.held_out[max(self.held_out)]


@dataclass
class Learning:
    maker: AttemptMaker
    # The base model of each seed.
    bases: dict[int, Path] = field(default_factory=dict)

    def base(self, seed: int) -> Path:
        if seed not in self.bases:
            shown = [(digit, said) for digit in DIGITS for said in [_next(digit)] * 8 + list(DIGITS)]
            self.bases[seed] = self._imitated("base", seed, shown, steps=200).checkpoint
        return self.bases[seed]

    def fine_tuned(self, seed: int, save_every_steps: int = 0) -> Learnt:
        """From the untrained model, by right answers alone."""
        shown = [(digit, _next(digit)) for digit in DIGITS for _ in range(18)]
        return self._imitated("sft", seed, shown, steps=120, save_every_steps=save_every_steps)

    def _imitated(self, name: str, seed: int, shown: list[tuple[int, int]], **params: Any) -> Learnt:
        answers = [{"messages": [_turn("user", digit), _turn("assistant", said)]} for digit, said in shown]
        return self._run(name, "sft", seed, self.maker.model, answers, {**_SFT, **params})

    def reinforced(self, algorithm: str, seed: int, **params: Any) -> Learnt:
        """`params` replace those of PARAMS."""
        return self._run(algorithm, algorithm, seed, self.base(seed), _prompts(26), {**PARAMS[algorithm], **params})

    def _run(
        self, name: str, algorithm: str, seed: int, model: Path, rows: list[dict[str, Any]], params: dict[str, Any]
    ) -> Learnt:
        maker = AttemptMaker(
            self.maker.root,
            model,
            self.maker.ray_address,
            started=self.maker.started,
            fork_server=self.maker.fork_server,
        )
        attempt = maker(f"{name}-{seed}", algorithm, seed=seed, validation=_VALIDATION, **params)
        assert attempt.plan.validation_path is not None
        write_rows(Path(attempt.plan.train_path), rows)
        write_rows(Path(attempt.plan.validation_path), _prompts(20))
        # The maker's own data set is smaller.
        assert attempt.plan.validation is not None
        plan = replace(attempt.plan, validation=replace(attempt.plan.validation, rows=_VALIDATION["rows"]))
        return _learnt(algorithm, seed, maker.of(attempt.folder, plan).run())


def _learnt(algorithm: str, seed: int, records: list[Record]) -> Learnt:
    end = records[-1]
    assert isinstance(end, End)
    series = [record for record in records if isinstance(record, Metrics)]
    # Of all answers, where an algorithm leaves prompts out.
    drawn = [
        one.values.get("rollout/reward/mean", one.values["reward/mean"])
        for one in series
        if "reward/mean" in one.values
    ]
    score = "validation/score/mean"
    held_out = {one.step: one.values[score] for one in series if score in one.values}
    saved = [record for record in records if isinstance(record, Checkpoint) and record.state == "ready"]
    assert saved and 0 in held_out and len(held_out) > 1, end
    return Learnt(algorithm, seed, end, drawn, held_out, Path(saved[-1].path))


def _prompts(copies: int) -> list[dict[str, Any]]:
    return [{"prompt": [_turn("user", digit)], "answer": str(_next(digit))} for digit in DIGITS for _ in range(copies)]


def _next(digit: int) -> int:
    return (digit + 1) % len(DIGITS)


def _turn(role: str, digit: int) -> dict[str, str]:
    return {"role": role, "content": str(digit)}


@pytest.fixture(scope="session")
def learning(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, private_ray: PrivateRay) -> Iterable[Learning]:
    maker = AttemptMaker(
        tmp_path_factory.mktemp("learning"), tiny_model, private_ray.address, fork_server=private_ray.fork_server
    )
    yield Learning(maker)
    for process in maker.started:
        process.kill()
        process.wait()
