"""Every algorithm on what the world brings: kinds of models, precisions, tokenizers and chat templates (fix_matrix.py).

The diagonal is part of every run of the tests; `make test-long` runs the cells that cover every pair besides. Any other
cell is run by its name: RLHF_MATRIX_CELLS=grpo-lora-bf16-phi3-tied-single-unigram-gemma pytest -m long -k matrix.
"""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from services.mesh.artifacts import Manifest
from services.mesh.runs.spool import End, Metrics, Problem, Record
from services.models.probe import PROBE_FILE, ask, difference
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from tests.fix_matrix import DIAGONAL, Cell, covering, wanted_cells
from tests.fix_runner import Attempt, AttemptMaker

pytestmark = pytest.mark.slow
STEPS, RESUMED_AT = 5, 3
ROWS = 64
LONGEST = 100
# Random weights are far from any answer, and adapters over them learn slowly.
RATES = {"sft": (3e-3, 2e-2), "reward_model": (1e-3, 1e-2), "dpo": (1e-3, 1e-2)}
POLICY_RATES = (5e-3, 3e-2)
COMMON: dict[str, Any] = {
    "steps": STEPS,
    "save_every_steps": 1,
    "scheduler": "constant",
    "warmup_ratio": 0.0,
    # All states are compared.
    "checkpoints": {"keep_training_states": STEPS},
}
POLICY: dict[str, Any] = {
    "prompts_per_step": 32,
    "samples_per_prompt": 4,
    "max_prompt_length": LONGEST,
    "max_response_length": 6,
    # Of another value for nearly every answer, so that there is something to learn from each group.
    "reward": {"name": "length", "params": {"shape": "linear", "longest": 40, "unit": "characters"}},
}
OWN: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": ROWS, "max_length": LONGEST},
    "dpo": {"batch_size": ROWS, "max_length": LONGEST},
    "reward_model": {"batch_size": ROWS, "max_length": LONGEST},
    "ppo": {**POLICY, "samples_per_prompt": 2, "critic": {"learning_rate": 1e-2}},
    "dapo": {**POLICY, "overlong_buffer": 2, "overlong_penalty": 0.1},
}
# What was computed in fp32 and what its roundings allow; merged into a shorter type each weight is rounded once more.
PROBE_TOLERANCE = {"fp32": 1e-3, "bf16": 0.5, "fp16": 0.1}
COVERING = covering(DIAGONAL)


@pytest.mark.parametrize("cell", DIAGONAL, ids=lambda cell: cell.name)
def test_the_diagonal(cell: Cell, attempts: AttemptMaker, tmp_path: Path) -> None:
    try_cell(cell, attempts, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("cell", wanted_cells() or COVERING, ids=lambda cell: cell.name)
def test_every_pair(cell: Cell, attempts: AttemptMaker, tmp_path: Path) -> None:
    try_cell(cell, attempts, tmp_path)


def try_cell(cell: Cell, attempts: AttemptMaker, tmp_path: Path) -> None:
    base = cell.shape.make(tmp_path / "model")
    attempts = replace(attempts, model=base)
    params = parameters(cell)
    whole = attempts("whole", cell.algorithm, **params)
    records = whole.run()
    steps = series(records)
    assert list(steps) == list(range(1, STEPS + 1)), said(records)
    for step, values in steps.items():
        assert values["train/grad_norm"] > 0, f"step {step}"
    check_learning(cell, steps)
    check_first_step(cell, whole, base, steps[1])

    saved = checkpoints(records)
    assert {step: one.state for step, one in saved.items()} == dict.fromkeys(range(1, STEPS + 1), "ready"), said(
        records
    )
    weights = {step: tensors(Path(one.path)) for step, one in saved.items()}
    for step, after in itertools.pairwise(weights):
        assert not same(weights[step], weights[after]), f"step {after} has changed no weight"
    never = [name for name in weights[1] if (weights[1][name] == weights[STEPS][name]).all()]
    # Of a reward model what raises both scores alike has no gradient, and with an adapter the whole is kept.
    assert not never or cell.algorithm == "reward_model", never
    check_answers(cell, saved[STEPS], base, tmp_path)

    point = plans.ResumePoint(RESUMED_AT, saved[RESUMED_AT].training_state_path)
    resumed = attempts("resumed", cell.algorithm, resume_from=point, **params).run()
    found = series(resumed)
    assert list(found) == list(range(RESUMED_AT + 1, STEPS + 1)), said(resumed)
    for step, values in found.items():
        assert values == pytest.approx(steps[step], rel=1e-3, abs=1e-5), f"step {step}"
    last = tensors(Path(checkpoints(resumed)[STEPS].path))
    assert all(close(last[name], tensor) for name, tensor in weights[STEPS].items())


def parameters(cell: Cell) -> dict[str, Any]:
    rates = RATES.get(cell.algorithm, POLICY_RATES)
    params = {**COMMON, **OWN.get(cell.algorithm, POLICY), "learning_rate": rates[cell.adapter]}
    if cell.algorithm == "ppo" and cell.shape.architecture == "gpt2":
        # Positions that are learnt make its values move further.
        params["critic"] = {"learning_rate": 1e-3}
    params["validation"] = {"rows": 4} if cell.algorithm == "reward_model" else {"rows": 4, "max_new_tokens": 8}
    return {**params, "lora": {"rank": 8, "alpha": 16}} if cell.adapter else params


WATCHED = ("train/loss", "train/grad_norm", "reward/mean", "rewards/margin", "rollout/probability_difference/max",
           "critic/loss", "logps/chosen")  # fmt: skip


def series(records: list[Record]) -> dict[int, dict[str, float]]:
    assert isinstance(records[-1], End) and records[-1].outcome == "succeeded", said(records)
    found = [one for one in records if isinstance(one, Metrics) and "train/loss" in one.values]
    return {one.step: {name: one.values[name] for name in WATCHED if name in one.values} for one in found}


def said(records: list[Record]) -> str:
    """What a run has to say of itself where it went wrong."""
    return "\n".join(one.message for one in records if isinstance(one, Problem | End))


def checkpoints(records: list[Record]) -> dict[int, Checkpoint]:
    """The last that is said of each."""
    return {one.step: one for one in records if isinstance(one, Checkpoint)}


def check_learning(cell: Cell, steps: dict[int, dict[str, float]]) -> None:
    if cell.algorithm in ("sft", "dpo", "reward_model"):
        assert steps[STEPS]["train/loss"] < 0.9 * steps[1]["train/loss"], steps
        return
    for values in steps.values():
        # What samples, token by token with a cache, and what trains, whole rows at once, are one model. It is compared
        # where a step is several updates.
        assert values.get("rollout/probability_difference/max", 0) < 1e-3, steps
    if cell.algorithm == "ppo":
        # Whose policy has little to go by before the critic has learnt; answers are sampled, so no one step is asked.
        assert min(steps[step]["critic/loss"] for step in range(2, STEPS + 1)) < steps[1]["critic/loss"], steps
        return
    assert max(steps[step]["reward/mean"] for step in range(3, STEPS + 1)) > steps[1]["reward/mean"], steps


def check_first_step(cell: Cell, attempt: Attempt, base: Path, values: dict[str, float]) -> None:
    """Its loss is that of all rows under the base model, taken by transformers over the assistant's tokens alone."""
    rows = [json.loads(line) for line in Path(attempt.plan.train_path).read_text().splitlines()]
    if cell.algorithm == "sft":
        sums = [answer_logp(base, row["messages"][:-1], row["messages"][-1:]) for row in rows]
        # Only SFT keeps dropout, which GPT-2 has by default.
        near = 0.05 if cell.shape.architecture == "gpt2" else 1e-3
        assert values["train/loss"] == pytest.approx(-sum(s for s, _ in sums) / sum(n for _, n in sums), rel=near)
    elif cell.algorithm == "dpo":
        sums = [answer_logp(base, row["prompt"], row["chosen"]) for row in rows]
        assert values["logps/chosen"] == pytest.approx(sum(s for s, _ in sums) / len(sums), rel=1e-3)


_LOADED: dict[Path, Any] = {}


def answer_logp(base: Path, prompt: list[dict[str, str]], answer: list[dict[str, str]]) -> tuple[float, int]:
    """Of everything that the template puts after the opening of the assistant's turn, and how many tokens that is."""
    import torch

    model, tokenizer = loaded(base)
    rendered: dict[str, Any] = {"tokenize": True, "return_dict": False}
    opening = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, **rendered)
    tokens_T = torch.tensor(tokenizer.apply_chat_template(prompt + answer, **rendered))
    with torch.no_grad():
        logp_T_V = model(tokens_T[None]).logits[0].log_softmax(-1)
    logp_T = logp_T_V[:-1].gather(1, tokens_T[1:, None]).squeeze(1)[len(opening) - 1 :]
    return float(logp_T.sum()), len(logp_T)


def loaded(base: Path) -> tuple[Any, Any]:
    """In fp32, which is what is computed in, with the attention that the model's makers trained it with."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if base not in _LOADED:
        _LOADED.clear()
        model = AutoModelForCausalLM.from_pretrained(base, dtype="float32", attn_implementation="eager").eval()
        _LOADED[base] = model, AutoTokenizer.from_pretrained(base)
    return _LOADED[base]


def tensors(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(bool((one[name] == other[name]).all()) for name in one)


def close(one: Any, other: Any) -> bool:
    import torch

    return torch.allclose(one.float(), other.float(), rtol=1e-3, atol=1e-4)


def check_answers(cell: Cell, checkpoint: Checkpoint, base: Path, tmp_path: Path) -> None:
    """The last weights answer as they did in training, loaded as their users load them."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from services.models.merge import merge

    folder = Path(checkpoint.path)
    [path] = Path(checkpoint.training_state_path).rglob(PROBE_FILE)
    probe = json.loads(path.read_text())["logprobs"]

    def far(model: Any) -> float:
        return difference(probe, ask(model.eval()))

    fresh: dict[str, Any] = {"dtype": "float32", "attn_implementation": "eager"}
    if cell.algorithm == "reward_model":
        assert far(AutoModelForSequenceClassification.from_pretrained(folder, **fresh)) < PROBE_TOLERANCE["fp32"]
        return
    if not cell.adapter:
        assert far(AutoModelForCausalLM.from_pretrained(folder, **fresh)) < PROBE_TOLERANCE["fp32"]
        return
    plain = AutoModelForCausalLM.from_pretrained(base, **fresh)
    unchanged = far(plain)
    assert far(PeftModel.from_pretrained(plain, str(folder))) < PROBE_TOLERANCE["fp32"] < unchanged
    merged = tmp_path / "merged"
    merge(base, Manifest.of_folder(base).sha256, [folder], merged)
    model = AutoModelForCausalLM.from_pretrained(merged, **fresh)
    assert far(model) < min(PROBE_TOLERANCE[cell.shape.dtype], unchanged)
