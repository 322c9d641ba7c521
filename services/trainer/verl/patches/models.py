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
    """A hook on verl's checkpoints: it exports models by the same parts of their names. What is exported has the
    dropout that its base had, and names no code of a tokenizer's own.
    """
    save = module.FSDPCheckpointManager.save_checkpoint

    def save_under_newer_name(manager: Any, *args: Any, **kwargs: Any) -> None:
        config = manager.model.config
        names = config.architectures
        config.architectures = [name.replace(_OLDER, _NEWER) for name in names or []]
        getattr(manager.processing_class, "init_kwargs", {}).pop("auto_map", None)
        try:
            with own_dropout(config):
                save(manager, *args, **kwargs)
        finally:
            # transformers writes the name of the class that it exports.
            config.architectures = names

    module.FSDPCheckpointManager.save_checkpoint = save_under_newer_name


def leave_out_auto_map(module: Any) -> None:
    """A hook on verl's configuration of a model. `auto_map` names code that came with the model before transformers had
    its architecture. verl chooses a class by it even where no such code may run, puts the source of that class beside
    each checkpoint, and would pass on to whoever loads one from where to fetch the code.
    """
    finish = module.HFModelConfig.__post_init__

    def finish_without(config: Any) -> None:
        finish(config)
        vars(config.hf_config).pop("auto_map", None)

    module.HFModelConfig.__post_init__ = finish_without


def mend_building(module: Any) -> None:
    """All hooks on how verl's FSDP engine builds a model."""
    mend_critic_configs(module)
    leave_out_dropout(module)


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


# Of each configuration that dropout was taken from, by its id: what it said.
_own_dropout: dict[int, dict[str, float]] = {}


def without_dropout(model: Any) -> None:
    """Set every probability by which a torch module drops something to 0, and those of its configuration, which some
    models read as they go; `own_dropout` brings these back."""
    from torch import nn

    for part in model.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        vars(part).update(dict.fromkeys(_drops(part), 0.0))
    _own_dropout[id(model.config)] = _drops(model.config)
    vars(model.config).update(dict.fromkeys(_drops(model.config), 0.0))


def _drops(owner: object) -> dict[str, float]:
    """`attention_dropout`, `resid_pdrop`, `layerdrop`, `dropout_p` and whatever else they are called."""
    return {name: value for name, value in vars(owner).items() if "drop" in name and isinstance(value, float)}


@contextmanager
def own_dropout(config: Any) -> Iterator[None]:
    """Within it a configuration says what it did before its model's dropout was left out."""
    kept = _own_dropout.get(id(config), {})
    left_out = {name: getattr(config, name) for name in kept}
    vars(config).update(kept)
    try:
        yield
    finally:
        vars(config).update(left_out)


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
