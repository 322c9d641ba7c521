"""The policy algorithms by verl on Ray: each a few steps, and what would be different without its own settings."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runs.spool import End, Metrics, Record
from services.trainer.runs.records import Checkpoint
from services.trainer.training.launch_plan import ResumePoint
from tests.fix_reward_model import tiny_reward_model as tiny_reward_model
from tests.fix_runner import AttemptMaker

pytestmark = pytest.mark.slow
ANSWER_TOKENS = 8
PARAMS: dict[str, Any] = {
    "learning_rate": 1e-3,
    "prompts_per_step": 4,
    "samples_per_prompt": 4,
    "max_prompt_length": 16,
    "max_response_length": ANSWER_TOKENS,
    "validation": {"rows": 1, "max_new_tokens": 1},
    # True of about half of an untrained model's answers.
    "reward": {"name": "regex", "params": {"pattern": "[12]", "mode": "search"}},
}
CRITIC_RATE = 1e-2


def trained(records: list[Record], steps: int) -> list[dict[str, float]]:
    """The values of each step of a run that ended well after `steps`."""
    end = records[-1]
    assert isinstance(end, End) and (end.outcome, end.step) == ("succeeded", steps), end
    return [r.values for r in records if isinstance(r, Metrics) and "reward/mean" in r.values]


def last_checkpoint(records: list[Record]) -> Checkpoint:
    return [r for r in records if isinstance(r, Checkpoint) and r.state == "ready"][-1]


def critic(checkpoint: Checkpoint) -> tuple[dict[str, Any], float]:
    """Weights of the saved critic by name, and how many updates its optimizer has made."""
    import torch

    folder = Path(checkpoint.training_state_path) / f"global_step_{checkpoint.step}" / "critic"
    load = {"map_location": "cpu", "weights_only": False}
    optimizer = torch.load(next(folder.glob("optim_*.pt")), **load)["state"]
    weights = torch.load(next(folder.glob("model_*.pt")), **load)
    plain = {name: value.to_local() if hasattr(value, "to_local") else value for name, value in weights.items()}
    return plain, {float(state["step"]) for state in optimizer.values()}.pop()


def test_ppo_learns_with_a_critic_that_a_resumed_run_takes_up(attempts: AttemptMaker) -> None:
    settings = {"learning_rate": CRITIC_RATE, "warmup_steps": 1, "micro_batch_size": 2}
    params = {**PARAMS, "samples_per_prompt": 1, "mini_batch_size": 2, "critic": settings}
    records = attempts("first", "ppo", steps=2, **params).run()
    warming, learning = trained(records, 2)
    # While the critic warms up the policy stays what it was, which is its reference.
    assert "train/loss" not in warming and "train/loss" in learning
    assert abs(warming["actor/kl"]) < 1e-5 and warming["actor/kl_coefficient"] == 0.02
    assert warming["critic/loss"] > 0 and warming["critic/learning_rate"] == CRITIC_RATE
    assert {"critic/value_clip_fraction", "critic/explained_variance", "critic/grad_norm"} <= learning.keys()
    # Whitened over the step's tokens.
    assert abs(learning["advantage/mean"]) < 1e-4
    saved = last_checkpoint(records)
    assert saved.kind == "full" and not list(Path(saved.path).glob("*critic*"))

    point = ResumePoint(saved.step, saved.training_state_path)
    records = attempts("second", "ppo", resume_from=point, steps=3, **params).run()
    trained(records, 3)
    before, updates_before = critic(saved)
    after, updates_after = critic(last_checkpoint(records))
    assert (updates_before, updates_after) == (4, 6)
    # Two updates of Adam move no weight by more than some two learning rates; a critic made anew is further away.
    moved = max(float((after[name] - before[name]).abs().max()) for name in before)
    assert 0 < moved < 3 * CRITIC_RATE


def test_ppo_starts_its_critic_from_a_reward_model(attempts: AttemptMaker, tiny_reward_model: Path) -> None:
    from safetensors.torch import load_file

    judge = "projects/p/models/judge"
    settings = {"model": judge, "learning_rate": 1e-9}
    made = attempts("judged", "ppo", steps=1, **{**PARAMS, "samples_per_prompt": 1, "critic": settings})
    verl = {**made.plan.verl, "critic.model.path": str(tiny_reward_model)}
    records = attempts.of(made.folder, made.plan, verl=verl).run()
    trained(records, 1)
    weights, _ = critic(last_checkpoint(records))
    # At such a rate it still is what it started as: the judge, with its score as the value.
    before = load_file(tiny_reward_model / "model.safetensors")
    assert max(float((weights[name] - before[name]).abs().max()) for name in before) < 1e-6
    assert set(weights) - set(before) == {"score.bias"} and float(weights["score.bias"].abs().max()) < 1e-6


def test_ppo_trains_adapters_of_the_policy_and_all_of_the_critic(attempts: AttemptMaker) -> None:
    params = {**PARAMS, "learning_rate": 1e-2, "samples_per_prompt": 1, "lora": {"rank": 4}}
    records = attempts("adapters", "ppo", steps=2, **params).run()
    assert all(values["critic/loss"] > 0 for values in trained(records, 2))
    saved = last_checkpoint(records)
    assert saved.kind == "adapter"
    weights, _ = critic(saved)
    assert not [name for name in weights if "lora" in name]


def test_gspo_clips_answers_not_tokens(attempts: AttemptMaker) -> None:
    # The bound on single tokens' ratios has no place in GSPO's loss; in GRPO's it would now be felt.
    steps = trained(attempts("sequences", "gspo", steps=2, **PARAMS, dual_clip=1.0001).run(), 2)
    assert all(values["verl/actor/pg_clipfrac_lower"] == 0 for values in steps)
    # Four updates a step: after the first, ratios leave so narrow a clip.
    assert sum(values["actor/clip_fraction"] for values in steps) > 0.2


def test_rloo_judges_against_the_other_answers(attempts: AttemptMaker) -> None:
    first, second = trained(attempts("rloo", "rloo", steps=2, **PARAMS).run(), 2)
    # Of four answers with rewards 0 or 1, against the mean of three; the policy is still its reference.
    assert min(abs(first["advantage/max"] - thirds / 3) for thirds in (1, 2, 3)) < 1e-3
    assert first["actor/kl_coefficient"] == 0.03 and second["actor/kl"] != 0


def test_reinforce_plus_plus_normalises_over_the_step(attempts: AttemptMaker) -> None:
    params = {**PARAMS, "prompts_per_step": 16, "samples_per_prompt": 1}
    for values in trained(attempts("whitened", "reinforce_plus_plus", steps=2, **params).run(), 2):
        assert abs(values["advantage/mean"]) < 1e-4 and values["advantage/max"] > 0.5
        assert values["actor/kl_coefficient"] == 0.01


def test_dr_grpo_divides_by_neither_deviation_nor_length(attempts: AttemptMaker) -> None:
    for values in trained(attempts("plain", "dr_grpo", steps=2, **PARAMS).run(), 2):
        assert min(abs(values["advantage/max"] - quarters / 4) for quarters in (1, 2, 3)) < 1e-5
        # Summed over an answer and divided by the constant, as the losses are: no token's entropy exceeds ln 17.
        a_token = values["actor/entropy"] * ANSWER_TOKENS / values["rollout/response_length/mean"]
        assert 2 < a_token < math.log(17) + 1e-3


def test_dapo_replaces_uniform_prompts_and_takes_from_long_answers(attempts: AttemptMaker) -> None:
    params = {**PARAMS, "samples_per_prompt": 2, "overlong_buffer": 2, "overlong_penalty": 0.5}
    steps = trained(attempts("dynamic", "dapo", steps=3, **params).run(), 3)
    assert sum(values.get("rollout/uniform_prompts", 0) for values in steps) > 0
    for values in steps:
        left_out = values.get("rollout/uniform_prompts", 0) + values.get("rollout/surplus_prompts", 0)
        assert values["rollout/prompts"] == PARAMS["prompts_per_step"] + left_out
        # Of two answers of different reward one is above and one below their mean, by as many deviations; none, where
        # the penalty makes up for the reward.
        assert values["advantage/max"] == pytest.approx(math.sqrt(0.5), abs=1e-4)
        assert -0.5 <= values["reward/overlong/mean"] < 0
        parts = values["reward/format/mean"] + values["reward/overlong/mean"]
        assert values["rollout/reward/mean"] == pytest.approx(parts, abs=1e-6)


def test_dapo_leaves_out_prompts_whose_answers_differ_in_length_alone(attempts: AttemptMaker) -> None:
    """Right or wrong, all of these are the same; the penalty, which is not, must keep none of them."""
    reward = {"name": "regex", "params": {"pattern": "never", "mode": "search"}}
    params = {**PARAMS, "reward": reward, "overlong_buffer": 8, "overlong_penalty": 0.5, "max_generation_batches": 2}
    end = attempts("alike", "dapo", steps=2, **params).run()[-1]
    assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "REWARDS_UNIFORM"), end
    assert "of 8 prompts only 0 had answers of different reward" in end.message


def test_dapo_ends_with_a_checkpoint_where_all_has_been_learnt(attempts: AttemptMaker) -> None:
    """So fast a policy soon answers all prompts alike: no prompt is left to learn from, and the run doesn't hang."""
    params = {**PARAMS, "learning_rate": 1e-2, "max_generation_batches": 2, "overlong_penalty": 0}
    records = attempts("uniform", "dapo", steps=500, **params).run()
    end = records[-1]
    assert isinstance(end, End) and (end.outcome, end.reason) == ("failed", "REWARDS_UNIFORM"), end
    assert f"step {end.step + 1}: of 8 prompts only " in end.message and "a step needs 4" in end.message
    assert end.step >= 1 and last_checkpoint(records).step == end.step
