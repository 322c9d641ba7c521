"""Dropout of a model's own, which is left out where a loss compares what the model says with what it said before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from services.trainer.verl.environment import DROPOUT  # noqa: E402
from services.trainer.verl.patches.models import leave_out_dropout, own_dropout  # noqa: E402

SIZES = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "gpt_neox": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "llama": {"attention_dropout": 0.5},
    "opt": {"dropout": 0.5, "attention_dropout": 0.5, "layerdrop": 0.5},
    "gpt_bigcode": {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5},
    "starcoder2": {"residual_dropout": 0.5, "embedding_dropout": 0.5, "attention_dropout": 0.5},
    "bloom": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
    "falcon": {"hidden_dropout": 0.5, "attention_dropout": 0.5},
}


def built(kind: str, attention: str) -> Any:
    """By verl's engine, as far as this is about it."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SIZES, **MODELS[kind], attn_implementation=attention)
    engine: Any = type("FSDPEngine", (), {})
    engine._build_module = lambda self: transformers.AutoModelForCausalLM.from_config(config)
    leave_out_dropout(SimpleNamespace(FSDPEngine=engine))
    return engine()._build_module().train()


@pytest.mark.parametrize(
    # BLOOM has one kind of attention.
    ("kind", "attention"),
    [(kind, attention) for kind in MODELS for attention in ("eager", "sdpa") if (kind, attention) != ("bloom", "sdpa")],
)
def test_a_model_without_dropout_answers_in_training_as_it_does_asked(
    kind: str, attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = torch.arange(20).reshape(1, 20)
    monkeypatch.setenv(DROPOUT, "0")
    model = built(kind, attention)
    trained = model(tokens).logits
    assert torch.equal(trained, model.eval()(tokens).logits)
    with own_dropout(model.config):
        assert all(getattr(model.config, name) == 0.5 for name in MODELS[kind]), "it is saved as it was"
    assert not any(getattr(model.config, name) for name in MODELS[kind])

    monkeypatch.setenv(DROPOUT, "1")
    model = built(kind, attention)
    assert not torch.equal(model(tokens).logits, trained)
    assert torch.equal(model.eval()(tokens).logits, trained)
