"""What the side process makes of an adapter: it takes the one that was trained, and no other, whatever type the base is
stored in and training computes in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.spool import Problem, SpoolWriter
from services.models import adapter_sums
from services.models.probe import Probe, ask
from services.trainer.algorithms import algorithms
from services.trainer.runs.records import Checkpoint, read_from
from services.trainer.verifier.process import Checker
from services.trainer.verifier.requests import CheckRequest
from tests.fix_stored import store_as
from tests.integration.trainer.test_merge import llama, saved
from tests.unit.trainer.test_algorithms import INPUTS

pytestmark = pytest.mark.slow
STORED = [torch.bfloat16, torch.float16, torch.float32]


def train(base: Path, folder: Path, computes_in: torch.dtype) -> Probe:
    """An adapter as some steps of Adam leave it, and what base and adapter answer in training."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1e-3)
    model.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    adapter = adapter_sums.of_model(model)
    model.to(computes_in).eval()
    return Probe(dtype=str(computes_in).removeprefix("torch."), logprobs=ask(model), adapter=adapter)


def check(folder: Path, base: Path, adapter: Path, probe: Probe) -> tuple[str, str]:
    """The state that the side process gives it, and the problem that it names."""
    precision = "fp32" if probe.dtype == "float32" else "bf16"
    params = algorithms.get("sft").Params(precision=precision)
    inputs = replace(INPUTS, validation_path=None, work_dir=str(folder), model_path=str(base))
    path = folder / SPOOL_FILE
    path.unlink(missing_ok=True)
    request = CheckRequest(step=1, path=str(adapter), kind="adapter", probe=probe)
    Checker(algorithms.get("sft").plan(params, inputs), SpoolWriter(path)).handle(request)
    records, _ = read_from(path, 0)
    [found] = [record for record in records if isinstance(record, Checkpoint)]
    return found.state, " ".join(record.message for record in records if isinstance(record, Problem))


def change(adapter: Path, how: Callable[[torch.Tensor], torch.Tensor]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = {name: how(tensor) if "lora_B" in name else tensor for name, tensor in load_file(path).items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata={"format": "pt"})


def double_alpha(adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": 16}))


WRONG: dict[str, Callable[[Path], None]] = {
    # One update of Adam at a rate of 1e-6.
    "another step's": lambda adapter: change(adapter, lambda b: b + 1e-6 * b.sign()),
    "zeroed": lambda adapter: change(adapter, torch.zeros_like),
    "scaled": lambda adapter: change(adapter, lambda b: 1.01 * b),
    "rows exchanged": lambda adapter: change(adapter, lambda b: b.flip(0)),
    "another alpha": double_alpha,
}


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("computes_in", [torch.float32, torch.bfloat16])
def test_the_adapter_that_was_trained_is_told_from_every_other(
    tmp_path: Path, stored: torch.dtype, computes_in: torch.dtype
) -> None:
    base = store_as(saved(llama(), tmp_path / "made"), tmp_path / "base", stored)
    adapter = tmp_path / "adapter"
    probe = train(base, adapter, computes_in)
    assert check(tmp_path, base, adapter, probe) == ("ready", "")
    for name, spoil in WRONG.items():
        copy = tmp_path / name
        shutil.copytree(adapter, copy)
        spoil(copy)
        state, problem = check(tmp_path, base, copy, probe)
        assert state == "corrupt" and "trained" in problem, (name, problem)

    torch.manual_seed(7)
    other = llama()
    other.apply(lambda module: module.reset_parameters() if isinstance(module, torch.nn.Linear) else None)
    state, problem = check(tmp_path, store_as(saved(other, tmp_path / "x"), tmp_path / "other", stored), adapter, probe)
    assert state == "corrupt" and "an answer to the probe differs" in problem, problem
