"""A critic's first values: those of the reward model that it starts from, whatever its layers are called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from services.trainer.verl.patches.value_head import load, score_layer  # noqa: E402

SIZES: dict[str, dict[str, Any]] = {
    # Both of its classifiers call the last layer `score`.
    "llama": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 20, "max_position_embeddings": 32,
    },
    # `score` of a sequence, `classifier` of a token.
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 20, "n_positions": 32},
}  # fmt: skip
TOKENS = [[5, 3, 8, 1]]


def config(kind: str) -> Any:
    return transformers.AutoConfig.for_model(kind, **SIZES[kind], pad_token_id=0, num_labels=1)


def made(kind: str, auto: Any, folder: Path, **how: Any) -> Any:
    torch.manual_seed(1)
    model = auto.from_config(config(kind)).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder, **how)
    return model


def critic(folder: Path) -> Any:
    """As verl asks for it."""
    found = transformers.AutoConfig.from_pretrained(folder, attn_implementation="sdpa")
    found.num_labels, found.classifier_dropout, found.summary_dropout_prob = 1, 0.0, 0.0
    return load(str(folder), torch.float32, found, False).eval()


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("shard", ["10GB", "3KB"])
def test_the_value_of_the_last_token_is_the_reward_models_score(kind: str, shard: str, tmp_path: Path) -> None:
    judge = made(kind, transformers.AutoModelForSequenceClassification, tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "3KB")
    with torch.no_grad():
        values = critic(tmp_path)(input_ids=torch.tensor(TOKENS)).logits
        score = judge(input_ids=torch.tensor(TOKENS)).logits
    assert values.shape == (1, 4, 1)
    torch.testing.assert_close(values[:, -1], score)


@pytest.mark.parametrize("kind", SIZES)
def test_a_language_models_critic_has_its_body_and_a_new_head(kind: str, tmp_path: Path) -> None:
    model = made(kind, transformers.AutoModelForCausalLM, tmp_path)
    found = critic(tmp_path)
    body = dict(model.base_model.named_parameters())
    assert all(torch.equal(value, body[name]) for name, value in found.base_model.named_parameters())


def test_weights_that_are_not_whole_are_no_critic(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made("llama", transformers.AutoModelForSequenceClassification, tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    save_file({name: value for name, value in tensors.items() if "norm" not in name}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lack .*norm"):
        critic(tmp_path)
    save_file({name: value for name, value in tensors.items() if name != "score.weight"}, file)
    with pytest.raises(ValueError, match="not one linear layer"):
        score_layer(tmp_path)
