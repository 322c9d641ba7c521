"""The side process on real weights: what it takes, and what it finds wrong with a copy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.spool import Problem, SampleBatch, SpoolWriter
from services.mesh.validation.params import parse
from services.models.probe import TOLERANCE, Probe, ask, difference
from services.trainer.algorithms import algorithms
from services.trainer.runs.records import Checkpoint, read_from
from services.trainer.verifier.generate import Answerer
from services.trainer.verifier.process import Checker
from services.trainer.verifier.requests import CheckRequest
from tests.fix_reward_model import tiny_reward_model as tiny_reward_model
from tests.unit.trainer.test_algorithms import INPUTS

pytestmark = pytest.mark.slow


def change_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    name = next(name for name in tensors if "down_proj" in name)
    tensors[name][0, 0] += 1.0
    save_file(tensors, path, metadata={"format": "pt"})


def leave_a_tensor_out(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    tensors = load_file(path)
    del tensors[next(name for name in tensors if "down_proj" in name)]
    save_file(tensors, path, metadata={"format": "pt"})


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def delete(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def change_the_form(folder: Path) -> None:
    """A config that makes another function of the same tensors."""
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "relu"}))


def checked(folder: Path, weights: Path, probe: Probe | None) -> tuple[str, list[str], dict[str, float]]:
    """State, problems and metrics that the side process reports."""
    plan = algorithms.get("sft").plan(
        algorithms.get("sft").Params(), replace(INPUTS, validation_path=None, work_dir=str(folder))
    )
    path = folder / SPOOL_FILE
    path.unlink(missing_ok=True)
    Checker(plan, SpoolWriter(path)).handle(CheckRequest(step=1, path=str(weights), kind="full", probe=probe))
    records, _ = read_from(path, 0)
    [found] = [record for record in records if isinstance(record, Checkpoint)]
    problems = [record for record in records if isinstance(record, Problem)]
    assert all("take the checkpoint before it" in problem.remedy for problem in problems)
    return found.state, [problem.message for problem in problems], found.metrics


def test_what_was_saved_answers_as_what_was_trained(tiny_model: Path, tmp_path: Path) -> None:
    probe = Probe(dtype="float32", logprobs=ask(Answerer(tiny_model).model))
    assert len(probe.logprobs) == 16 and all(len(row) == 8 for row in probe.logprobs)
    state, problems, metrics = checked(tmp_path, tiny_model, probe)
    assert (state, problems) == ("ready", [])
    assert metrics["verification/logprob_difference"] < 1e-6
    assert checked(tmp_path, tiny_model, None)[0] == "ready", "what is no language model has no probe"


@pytest.mark.parametrize("damage", [change_a_weight, leave_a_tensor_out, truncate, delete, change_the_form])
def test_what_is_something_else_is_corrupt(tiny_model: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    probe = Probe(dtype="float32", logprobs=ask(Answerer(tiny_model).model))
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    damage(copy)
    state, problems, _ = checked(tmp_path, copy, probe)
    assert state == "corrupt" and len(problems) == 1
    if damage in (change_a_weight, change_the_form):
        assert "not what was trained" in problems[0], "it loads; only its answers tell"


def test_rounding_of_bf16_is_none_and_other_weights_are() -> None:
    """A model whose logits vary as those of a trained one: in bf16 single numbers are far off, the mean is not."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=512, num_hidden_layers=12, num_attention_heads=4, num_key_value_heads=4,
        vocab_size=2000, initializer_range=0.15,
    )  # fmt: skip
    model, other = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()
    exact = ask(model)
    rounded = ask(model.bfloat16())
    assert difference(exact, rounded, "bfloat16") <= TOLERANCE["bfloat16"] < difference(exact, rounded)
    assert difference(exact, ask(other), "bfloat16") > 2 * TOLERANCE["bfloat16"]


def test_what_is_no_number_differs() -> None:
    nan = float("nan")
    assert difference([[1.0, 2.0]], [[1.0, 2.5]]) == 0.5
    assert difference([[1.0, 2.0]], [[1.0, 2.5]], "bfloat16") == 0.25
    assert difference([[1.0]], [[nan]]) == difference([[nan]], [[nan]]) == difference([[1.0]], []) == float("inf")


def without_nines(model: Path, folder: Path) -> Path:
    """A copy whose chat template refuses conversations that begin with a 9."""
    copy = shutil.copytree(model, folder / "model")
    template = "{% if messages[0].content == '9' %}{{ raise_exception('no nines') }}{% endif %}"
    path = copy / "chat_template.jinja"
    path.write_text(template + path.read_text())
    return copy


def test_pairs_that_a_template_refuses_say_nothing_against_a_reward_model(
    tiny_reward_model: Path, tmp_path: Path
) -> None:
    folder = without_nines(tiny_reward_model, tmp_path)
    turns = {"prompt": "9", "chosen": "1", "rejected": "2"}
    sides = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    row = {side: [{"role": role, "content": turns[side]}] for side, role in sides.items()}
    (tmp_path / "validation.jsonl").write_text(json.dumps(row) + "\n")
    inputs = replace(INPUTS, work_dir=str(tmp_path), validation_path=str(tmp_path / "validation.jsonl"))
    algorithm, spool = algorithms.get("reward_model"), tmp_path / SPOOL_FILE
    checker = Checker(algorithm.plan(algorithm.Params(), inputs), SpoolWriter(spool))
    for step, model in enumerate((folder, tiny_reward_model), start=1):
        checker.handle(CheckRequest(step=step, path=str(model), kind="reward"))
    records, _ = read_from(spool, 0)
    refused, judged = [record for record in records if isinstance(record, Checkpoint)]
    assert (refused.state, refused.metrics, judged.state) == ("ready", {}, "ready")
    assert judged.metrics["validation/pairs/count"] == 1 and judged.metrics["validation/loss"] > 0
    [problem] = [record for record in records if isinstance(record, Problem)]
    assert problem.message.startswith("step 1 has no score of its held-out pairs: ") and "no nines" in problem.message


def test_rows_that_cannot_be_answered_say_nothing_against_the_weights(tiny_model: Path, tmp_path: Path) -> None:
    folder = without_nines(tiny_model, tmp_path)
    said = [[("user", "1" * 40)], [("user", "9")], [("assistant", "3")], [("user", "21"), ("assistant", "12")]]
    rows = [{"messages": [{"role": role, "content": text} for role, text in turns]} for turns in said]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = replace(INPUTS, work_dir=str(tmp_path), validation_path=str(tmp_path / "validation.jsonl"))
    algorithm = algorithms.get("sft")
    plan = algorithm.plan(parse(algorithm.Params, {"validation": {"max_new_tokens": 4}}), inputs)
    spool = tmp_path / SPOOL_FILE
    Checker(plan, SpoolWriter(spool)).handle(CheckRequest(step=1, path=str(folder), kind="full"))
    records, _ = read_from(spool, 0)
    assert [record.state for record in records if isinstance(record, Checkpoint)] == ["ready"]
    [problem] = [record for record in records if isinstance(record, Problem)]
    assert problem.message.startswith("3 of 4 validation rows are not answered: prompt and 4 new tokens do not fit")
    [samples] = [record for record in records if isinstance(record, SampleBatch)]
    assert [(sample.row_index, sample.expected) for sample in samples.samples] == [(3, "12")]
