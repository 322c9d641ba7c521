"""Runs by verl beside a loop of torch alone that has the papers' formulas: the same steps from the same answers.

What test_policy_maths.py holds against formulas are verl's functions; here it is what a run makes of them, with its
sampling, mini-batches, forward passes, gradient clip and optimizer.

B answers, T tokens of prompt and answer, R of the answer, V the vocabulary.
"""
# ruff: noqa: N803, N806, N815  (axes stand in names)

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runs.spool import End, Metrics
from services.trainer.runs.records import Checkpoint
from tests.fix_runner import AttemptMaker

torch = pytest.importorskip("torch")

from services.models.sampling import Request, sample  # noqa: E402

pytestmark = pytest.mark.slow


def reward(pattern: str) -> dict[str, Any]:
    return {"name": "regex", "params": {"pattern": pattern, "mode": "search"}}


STEPS, PROMPTS, GROUP, LIMIT, SEED, RATE = 4, 4, 6, 6, 3, 2e-3
# What the log-ratio to the model that the run starts from takes from the reward: so much that it is felt.
KL = {"rloo": 0.5, "reinforce_plus_plus": 0.5}
PARAMS: dict[str, Any] = {
    "learning_rate": RATE,
    "prompts_per_step": PROMPTS,
    "samples_per_prompt": GROUP,
    # Two passes an update: what is normalised must not be by pass.
    "micro_batch_size": 3,
    "max_prompt_length": 16,
    "max_response_length": LIMIT,
    "validation": {"rows": 1, "max_new_tokens": 1},
    "reward": reward("[123]"),
    "steps": STEPS,
    "seed": SEED,
}


@dataclass(frozen=True)
class Batch:
    """One update's answers, padded on the right; `old` is of the policy that drew them."""

    input_B_T: Any
    attended_B_T: Any
    # 1 where a token was drawn, from place 1 on: the logits before it say how likely it was.
    mask_B_R: Any
    old_B_R: Any = None
    advantage_B_R: Any = None

    def rows(self, start: int, stop: int) -> Batch:
        return Batch(*(value[start:stop] for value in vars(self).values()))


@dataclass(frozen=True)
class Answer:
    prompt: list[int]
    drawn: list[int]
    reward: float


def padded(answers: list[Answer]) -> Batch:
    width = max(len(one.prompt) + len(one.drawn) for one in answers)
    input_B_T, attended, mask = (torch.zeros(len(answers), width, dtype=torch.long) for _ in range(3))
    for row, one in enumerate(answers):
        stop = len(one.prompt) + len(one.drawn)
        input_B_T[row, :stop] = torch.tensor([*one.prompt, *one.drawn])
        attended[row, :stop], mask[row, len(one.prompt) : stop] = 1, 1
    return Batch(input_B_T, attended, mask[:, 1:].float())


def by_deviation(reward_B: Any, kl_B_R: Any, mask_B_R: Any) -> Any:
    group = reward_B.view(-1, GROUP)
    return ((group - group.mean(1, keepdim=True)) / (group.std(1, keepdim=True) + 1e-6)).view(-1, 1) * mask_B_R


def by_mean(reward_B: Any, kl_B_R: Any, mask_B_R: Any) -> Any:
    group = reward_B.view(-1, GROUP)
    return (group - group.mean(1, keepdim=True)).view(-1, 1) * mask_B_R


def left_out(reward_B: Any, kl_B_R: Any, mask_B_R: Any) -> Any:
    group = (reward_B - KL["rloo"] * kl_B_R.sum(1)).view(-1, GROUP)
    others = (group.sum(1, keepdim=True) - group) / (GROUP - 1)
    return (group - others).view(-1, 1) * mask_B_R


def whitened(reward_B: Any, kl_B_R: Any, mask_B_R: Any) -> Any:
    """Of what is still to come at each token, the reward with the last one; over all tokens of the step."""
    coming_B_R = -KL["reinforce_plus_plus"] * kl_B_R.flip(1).cumsum(1).flip(1) + reward_B[:, None]
    drawn = coming_B_R[mask_B_R.bool()]
    return (coming_B_R - drawn.mean()) / drawn.std() * mask_B_R


def token_objective(high: float) -> Callable[[Any, Batch], Any]:
    def objective(new_B_R: Any, batch: Batch) -> Any:
        ratio, advantage = (new_B_R - batch.old_B_R).exp(), batch.advantage_B_R
        return torch.minimum(ratio * advantage, ratio.clamp(0.8, 1 + high) * advantage)

    return objective


def answer_objective(new_B_R: Any, batch: Batch) -> Any:
    """Equations 5 and 14 of GSPO: the answer's ratio, whose gradient every token has."""
    length_B = batch.mask_B_R.sum(1)
    mean_B = ((new_B_R - batch.old_B_R) * batch.mask_B_R).sum(1) / length_B
    ratio_B_R = (new_B_R - new_B_R.detach() + mean_B.detach()[:, None]).exp()
    clipped_B_R = ratio_B_R.clamp(1 - 3e-4, 1 + 4e-4)
    return torch.minimum(ratio_B_R * batch.advantage_B_R, clipped_B_R * batch.advantage_B_R)


def over_tokens(value_B_R: Any, mask_B_R: Any) -> Any:
    return value_B_R.sum() / mask_B_R.sum()


def over_answers(value_B_R: Any, mask_B_R: Any) -> Any:
    return (value_B_R.sum(1) / mask_B_R.sum(1)).mean()


def over_the_limit(value_B_R: Any, mask_B_R: Any) -> Any:
    return value_B_R.sum(1).mean() / LIMIT


def summed(value_B_R: Any, mask_B_R: Any) -> Any:
    return value_B_R.sum(1).mean()


@dataclass(frozen=True)
class Formula:
    advantage: Callable[[Any, Any, Any], Any]
    objective: Callable[[Any, Batch], Any]
    aggregated: Callable[[Any, Any], Any]
    updates: int = 1
    # Whether prompts whose answers all have the same reward are replaced by further ones.
    replaced: bool = False


FORMULAS = {
    "grpo": (Formula(by_deviation, token_objective(0.2), over_tokens), {}),
    "dr_grpo": (Formula(by_mean, token_objective(0.2), over_the_limit), {}),
    "gspo": (Formula(by_deviation, answer_objective, over_answers, updates=4), {}),
    # Sixteen updates, or as many as there are prompts.
    "dapo": (
        Formula(by_deviation, token_objective(0.28), over_tokens, updates=4, replaced=True),
        # Rarely wrong, so that many prompts are replaced.
        {"overlong_penalty": 0, "reward": reward("[1-8]"), "max_generation_batches": 40},
    ),
    "rloo": (Formula(left_out, token_objective(0.2), summed), {"kl_coefficient": KL["rloo"]}),
    "reinforce_plus_plus": (
        Formula(whitened, token_objective(0.2), over_tokens),
        {"kl_coefficient": KL["reinforce_plus_plus"]},
    ),
}


class Loop:
    """The run's own seeds draw the answers; all the rest is here."""

    def __init__(self, model: Path, formula: Formula, questions: Iterator[list[dict[str, str]]], pattern: str) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.formula, self.questions, self.pattern = formula, questions, pattern
        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.reference: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
        self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=RATE, betas=(0.9, 0.999), weight_decay=0.01)

    def step(self, number: int) -> tuple[float, float]:
        """The mean reward, and the gradient's norm, which is a mean over the step's updates."""
        answers = self._answers(number)
        reward_B, batch = torch.tensor([one.reward for one in answers]), padded(answers)
        with torch.no_grad():
            old_B_R, reference_B_R = (self._logprobs(batch, model) for model in (self.model, self.reference))
        advantage_B_R = self.formula.advantage(reward_B, old_B_R - reference_B_R, batch.mask_B_R)
        batch = replace(batch, old_B_R=old_B_R, advantage_B_R=advantage_B_R)
        size = len(reward_B) // self.formula.updates
        norms = [self._update(batch.rows(start, start + size)) for start in range(0, len(reward_B), size)]
        return float(reward_B.mean()), sum(norms) / len(norms)

    def _answers(self, number: int) -> list[Answer]:
        """Those of the first prompts that are kept; for each that is not, two more are asked, a step's at a time."""
        from services.trainer.verl.rollout.batch_generation import StepBatch

        groups: list[list[Answer]] = []
        asked, owed, batch = PROMPTS, 0, 0
        while True:
            drawn = self._drawn([next(self.questions) for _ in range(asked)], StepBatch(number, batch).seed(SEED, 0))
            kept = [one for one in drawn if not self.formula.replaced or len({answer.reward for answer in one}) > 1]
            groups += kept
            if len(groups) >= PROMPTS:
                return [answer for group in groups[:PROMPTS] for answer in group]
            owed += 2 * (len(drawn) - len(kept))
            asked, batch = min(owed, PROMPTS), batch + 1
            owed -= asked

    def _drawn(self, questions: list[list[dict[str, str]]], seed: int) -> list[list[Answer]]:
        prompts = [
            self.tokenizer.apply_chat_template(one, add_generation_prompt=True, tokenize=True, return_dict=False)
            for one in questions
            for _ in range(GROUP)
        ]
        requests = [Request(tuple(prompt), LIMIT) for prompt in prompts]
        ends, pad = frozenset({self.tokenizer.eos_token_id}), self.tokenizer.pad_token_id
        found = sample(self.model.eval(), requests, ends, pad, torch.Generator().manual_seed(seed))
        answers = [
            Answer(prompt, one.tokens, float(bool(re.search(self.pattern, self.tokenizer.decode(one.tokens)))))
            for prompt, one in zip(prompts, found, strict=True)
        ]
        return [answers[start : start + GROUP] for start in range(0, len(answers), GROUP)]

    def _logprobs(self, batch: Batch, model: Any) -> Any:
        """0 where nothing was drawn."""
        logit_B_T_V = model(input_ids=batch.input_B_T, attention_mask=batch.attended_B_T).logits
        logprob_B_R_V = logit_B_T_V[:, :-1].log_softmax(-1)
        return logprob_B_R_V.gather(-1, batch.input_B_T[:, 1:, None])[..., 0] * batch.mask_B_R

    def _update(self, batch: Batch) -> float:
        value_B_R = self.formula.objective(self._logprobs(batch, self.model), batch) * batch.mask_B_R
        self.optimizer.zero_grad()
        (-self.formula.aggregated(value_B_R, batch.mask_B_R)).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return float(norm)


@pytest.mark.parametrize("algorithm", list(FORMULAS))
def test_a_run_takes_the_steps_of_a_plain_loop(attempts: AttemptMaker, tiny_model: Path, algorithm: str) -> None:
    formula, settings = FORMULAS[algorithm]
    attempt = attempts(algorithm, algorithm, **{**PARAMS, **settings})
    ordered = attempts.of(attempt.folder, attempt.plan, verl={**attempt.plan.verl, "data.shuffle": False})
    records = ordered.run()
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", records[-1]
    steps = [one.values for one in records if isinstance(one, Metrics) and "reward/mean" in one.values]

    rows = [json.loads(line)["prompt"] for line in Path(attempt.plan.train_path).read_text().splitlines()]
    loop = Loop(tiny_model, formula, cycle(rows), attempt.plan.task.reward.params["pattern"])
    for number, values in enumerate(steps, start=1):
        mean, norm = loop.step(number)
        assert values["reward/mean"] == pytest.approx(mean, abs=1e-6), number
        assert values["train/grad_norm"] == pytest.approx(norm, rel=1e-3), number
    assert len(steps) == STEPS
    # Else neither the clips would be seen, nor which prompts are taken of more than enough.
    assert formula.updates == 1 or max(values["actor/clip_fraction"] for values in steps) > 0
    assert not formula.replaced or max(values.get("rollout/surplus_prompts", 0) for values in steps) > 0
    [saved] = [one for one in records if isinstance(one, Checkpoint) and one.state == "ready"]
    moved, apart = distances(tiny_model, loop.model, Path(saved.path))
    assert apart < 0.01 * moved


def distances(start: Path, ours: Any, saved: Path) -> tuple[float, float]:
    """How far the loop has come from the start, and how far the saved weights are from it: norms over all weights."""
    from safetensors.torch import load_file

    before, theirs = load_file(start / "model.safetensors"), load_file(saved / "model.safetensors")
    now = ours.state_dict()
    moved = sum(float(((now[name] - before[name]) ** 2).sum()) for name in theirs)
    apart = sum(float(((now[name] - theirs[name]) ** 2).sum()) for name in theirs)
    return moved**0.5, apart**0.5
