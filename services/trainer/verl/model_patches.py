"""verl's preparation of a model it has loaded, for models that it does not expect."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from services.trainer.verl.environment import DROPOUT

# How transformers calls language models: GPT2LMHeadModel, and all that came later.
_OLDER, _NEWER = "LMHeadModel", "ForCausalLM"


def mend_model_patches(module: Any) -> None:
    """A hook on verl's module of patches of models.

    verl patches TRL's value head wherever TRL is installed; newer ones have it no more, and our critics are none. And
    it asks every configuration for the number of its heads of keys, which those of GPT-2 and GPT-NeoX don't have: in
    these models each head has its own.
    """
    module.is_trl_available = lambda: False
    patch = module.apply_monkey_patch

    def patch_and_restore(model: Any, *args: Any, **kwargs: Any) -> Any:
        config = model.config.get_text_config()
        if hasattr(config, "num_key_value_heads"):
            return patch(model, *args, **kwargs)
        config.num_key_value_heads = config.num_attention_heads
        try:
            return patch(model, *args, **kwargs)
        finally:
            # It would be saved with the weights.
            del config.num_key_value_heads

    module.apply_monkey_patch = patch_and_restore


def mend_model_classes(module: Any) -> None:
    """A hook on verl's module that chooses a model's class by a part of its name, of which it knows no older one: GPT-2
    was loaded without its output layer.
    """
    module._architecture_to_auto_class[_OLDER] = module.AutoModelForCausalLM


def mend_saving(module: Any) -> None:
    """A hook on verl's checkpoints: it exports models by the same parts of their names. And beside one whose
    configuration has `auto_map` it puts the source of its class, which is transformers' and not the model's own.
    """
    module.custom_object_save = lambda *_, **__: []
    save = module.FSDPCheckpointManager.save_checkpoint

    def save_under_newer_name(manager: Any, *args: Any, **kwargs: Any) -> None:
        config = manager.model.config
        names = config.architectures
        config.architectures = [name.replace(_OLDER, _NEWER) for name in names or []]
        try:
            save(manager, *args, **kwargs)
        finally:
            # transformers writes the name of the class that it exports.
            config.architectures = names

    module.FSDPCheckpointManager.save_checkpoint = save_under_newer_name


def mend_critic_configs(module: Any) -> None:
    """A hook on verl's FSDP engine, which gives a critic's configuration the dropout "0", a text: GPT-NeoX's, which has
    such a setting, takes numbers only.
    """
    build = module.FSDPEngine._build_module

    def build_with_numbers(engine: Any) -> Any:
        with numbers(type(engine.model_config.hf_config)):
            return build(engine)

    module.FSDPEngine._build_module = build_with_numbers


def leave_out_dropout(module: Any) -> None:
    """A hook on verl's FSDP engine. GPT-2, GPT-NeoX and their kin drop units at random while they are trained. What is
    held against a reference, an earlier policy or another answer is then no longer what the model says, so only SFT
    keeps it, as in TRL (`disable_dropout`). Dropout of an adapter is a parameter of the job, and made later.
    """
    build = module.FSDPEngine._build_module

    def build_without(engine: Any) -> Any:
        model = build(engine)
        if os.environ.get(DROPOUT) == "0":
            without_dropout(model)
        return model

    module.FSDPEngine._build_module = build_without


def without_dropout(model: Any) -> None:
    """Set every probability of dropout in a torch module to 0; its configuration, which is saved with it, stays."""
    from torch import nn

    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        # What attention is called with.
        for name in ("attention_dropout", "dropout", "dropout_p"):
            if isinstance(getattr(part, name, None), float):
                setattr(part, name, 0.0)


@contextmanager
def numbers(configuration: Any) -> Iterator[None]:
    assign = configuration.__setattr__

    def assign_number(config: Any, name: str, value: Any) -> None:
        assign(config, name, 0.0 if (name, value) == ("hidden_dropout", "0") else value)

    configuration.__setattr__ = assign_number
    try:
        yield
    finally:
        configuration.__setattr__ = assign
