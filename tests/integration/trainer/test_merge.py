"""Merging adapters into weights, against peft: it answers as base and adapter do, and refuses what it cannot merge."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from services.mesh.artifacts import Manifest
from services.models.char_tokenizer import character_tokenizer
from services.models.inspection import UnusableModelError
from services.models.merge import merge
from tests.fix_runner import ENVIRONMENT

TOKENS = torch.arange(3, 15)[None]
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 17}


def llama(**changes: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = LlamaConfig(**{**SIZES, "num_key_value_heads": 1, "initializer_range": 0.2, **changes})
    return LlamaForCausalLM(config)


def gpt2() -> PreTrainedModel:
    """Its linear layers are Conv1D: square ones too, which no shape tells from their transpose."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=17, n_positions=32))


def saved(model: PreTrainedModel, folder: Path, **how: Any) -> Path:
    model.save_pretrained(folder, **how)
    character_tokenizer("0123456789", 32).save_pretrained(folder)
    return folder


def adapter_over(base: Path, folder: Path, seed: int = 1, **settings: Any) -> Path:
    """An adapter as peft saves it, whose B is not the zero that it begins with."""
    torch.manual_seed(seed)
    config = LoraConfig(
        **{"task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": "all-linear", **settings}
    )
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(str(folder))
    (folder / "README.md").unlink(missing_ok=True)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)
    return folder


@torch.inference_mode()
def logits(folder: Path, *adapters: Path) -> torch.Tensor:
    """In fp32, of the adapters as adapters: none of them is merged, but for those under the last."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for adapter in adapters[:-1]:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    if adapters:
        model = PeftModel.from_pretrained(model, str(adapters[-1]))
    return model.eval()(input_ids=TOKENS).logits


def merged(base: Path, *adapters: Path) -> Path:
    target = base.with_name("merged")
    facts = merge(base, Manifest.of_folder(base).sha256, adapters, target)
    assert facts.manifest_sha256 == Manifest.of_folder(target).sha256
    return target


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}])
def test_it_answers_as_base_and_adapter_do(
    tmp_path: Path, make: Callable[[], PreTrainedModel], settings: dict[str, Any]
) -> None:
    base = saved(make(), tmp_path / "base")
    adapter = adapter_over(base, tmp_path / "adapter", **settings)
    wanted = logits(base, adapter)
    assert (wanted - logits(base)).abs().max() > 0.1, "the adapter must matter"
    torch.testing.assert_close(logits(merged(base, adapter)), wanted, atol=2e-5, rtol=1e-4)


def test_an_adapter_over_an_adapter_is_merged_after_it(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path / "base")
    first, second = adapter_over(base, tmp_path / "1"), adapter_over(base, tmp_path / "2", seed=2)
    target = merged(base, first, second)
    torch.testing.assert_close(logits(target), logits(base, first, second), atol=2e-5, rtol=1e-4)


def test_bf16_is_rounded_once_and_what_no_adapter_names_keeps_its_bytes(tmp_path: Path) -> None:
    """Of a base in several files, one tensor of which is in fp32."""
    model = llama().bfloat16()
    model.model.norm.float()
    base = saved(model, tmp_path / "base", max_shard_size="8KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    adapter = adapter_over(base, tmp_path / "adapter", target_modules=["q_proj"])
    (base / "consolidated.safetensors").write_bytes(b"the same weights in a form that transformers does not load")
    target = merged(base, adapter)

    before, after = (
        {name: tensor for path in sorted(folder.glob("model*.safetensors")) for name, tensor in load_file(path).items()}
        for folder in (base, target)
    )
    low = load_file(adapter / "adapter_model.safetensors")
    assert {name: tensor.dtype for name, tensor in after.items()} == {name: t.dtype for name, t in before.items()}
    assert after["model.norm.weight"].dtype == torch.float32
    for name, tensor in before.items():
        if "q_proj" not in name:
            assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
            continue
        key = f"base_model.model.{name.removesuffix('.weight')}.lora_{{}}.weight"
        exact = tensor.double() + 2 * low[key.format("B")].double() @ low[key.format("A")].double()
        # One rounding: half of the last of eight bits, and what fp32 is off.
        assert ((after[name].double() - exact).abs() <= exact.abs() * 2**-8 + 1e-6).all()
    assert not (target / "consolidated.safetensors").exists()
    assert json.loads((target / "config.json").read_text()) == json.loads((base / "config.json").read_text())


def test_the_tokenizer_and_the_template_are_the_adapters(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path / "base")
    adapter = adapter_over(base, tmp_path / "adapter")
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    (adapter / "chat_template.jinja").write_text(template)
    target = merged(base, adapter)
    assert AutoTokenizer.from_pretrained(target).chat_template == template
    assert not list(target.glob("adapter*"))


Tensors = dict[str, torch.Tensor]


def _tensors(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def damage(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


def _with_pair(layer: str, rows: int, columns: int) -> Callable[[Path], None]:
    pair = {"A": torch.ones(4, columns), "B": torch.ones(rows, 4)}
    return _tensors(lambda t: t.update({f"base_model.model.{layer}.lora_{s}.weight": pair[s] for s in pair}))


def _settings(**changes: Any) -> Callable[[Path], None]:
    def damage(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return damage


def _truncate(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


# What is done to an adapter, and what is said of it.
HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no tensors file": (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "cannot be read"),
    "no settings file": (lambda adapter: (adapter / "adapter_config.json").unlink(), "cannot be read"),
    "settings that are no JSON": (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "cannot be read"),
    "cut short": (_truncate, "adapter_model.safetensors cannot be read"),
    "a side missing": (_tensors(lambda t: t.pop(min(t))), "no pair of A and B"),
    "no tensor at all": (_tensors(dict.clear), "no tensors"),
    "not a number": (_tensors(lambda t: t[min(t)].fill_(float("nan"))), "no number"),
    "too large": (_tensors(lambda t: [value.fill_(1e30) for value in t.values()]), "merged, .* no number"),
    "another rank": (_settings(r=8), "rank 8"),
    "another kind": (_settings(peft_type="IA3"), "only LORA"),
    "weights decomposed": (_settings(use_dora=True), "use_dora"),
    "a rank of its own for a layer": (_settings(rank_pattern={"q_proj": 2}), "rank_pattern"),
    "a whole layer": (_tensors(lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(1)})), "lm_head"),
    "a layer of another model": (_with_pair("model.layers.7.mlp.up_proj", 48, 32), "layers.7.mlp.up_proj, which the"),
    "a layer of another size": (_with_pair("model.layers.0.mlp.up_proj", 32, 32), "another shape"),
    "a layer that is not linear": (_with_pair("model.norm", 32, 32), "no linear layer"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_sound_adapter_is_refused_and_leaves_nothing(tmp_path: Path, case: str) -> None:
    damage, told = HOSTILE[case]
    base = saved(llama(), tmp_path / "base")
    adapter = adapter_over(base, tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(UnusableModelError, match=told):
        merged(base, adapter)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base"]


def test_another_base_is_refused_though_its_shapes_are_right(tmp_path: Path) -> None:
    base, other = saved(llama(), tmp_path / "base"), tmp_path / "other"
    adapter = adapter_over(base, tmp_path / "adapter")
    shutil.copytree(base, other)
    (other / "generation_config.json").write_text("{}")
    with pytest.raises(UnusableModelError, match="trained over weights of manifest"):
        merge(other, Manifest.of_folder(base).sha256, [adapter], tmp_path / "merged")


def test_what_the_embeddings_share_is_not_changed_behind_their_back(tmp_path: Path) -> None:
    base = saved(llama(tie_word_embeddings=True), tmp_path / "base")
    adapter = adapter_over(base, tmp_path / "adapter", target_modules=["q_proj"])
    _with_pair("lm_head", 17, 32)(adapter)
    with pytest.raises(UnusableModelError, match="shares its weights with the embeddings"):
        merged(base, adapter)


def test_the_process_says_what_it_made_or_why_not(tmp_path: Path) -> None:
    base = saved(llama(), tmp_path / "base")
    adapter = adapter_over(base, tmp_path / "adapter")
    command = [sys.executable, "-m", "services.models", "merge", str(tmp_path / "merged"), "--base", str(base)]
    command += ["--adapter", str(adapter), "--base-sha256"]
    wrong = subprocess.run([*command, "0" * 64], env=ENVIRONMENT, capture_output=True, check=False)
    assert wrong.returncode == 2 and "trained over weights" in json.loads(wrong.stdout)["error"]
    right = [*command, Manifest.of_folder(base).sha256]
    done = subprocess.run(right, env=ENVIRONMENT, capture_output=True, check=True)
    facts = json.loads(done.stdout)
    assert facts["architecture"] == "LlamaForCausalLM" and facts["has_chat_template"]
    assert facts["manifest_sha256"] == Manifest.of_folder(tmp_path / "merged").sha256
