"""verl's adapters where its own code goes wrong: making one, switching it off, and merging it for the rollout.

peft switches an adapter off by clearing `requires_grad` of its weights, and on again by setting it. FSDP2 keeps two
objects for a weight, the sharded one and the one that is gathered for a pass, of which the module holds now the one,
now the other; each gathering copies the sharded one's flag to the gathered one. A forward pass between off and on
leaves the gathered ones in place, so the flag is cleared on the sharded and set on the gathered: the next step still
trains, and no step after it does. Nothing needs the flag: who switches an adapter off takes no gradients.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch


def mend_adapters(module: Any) -> None:
    """A hook on verl's FSDP engine: adapters begin by the job's seed; and see the head of this file, and `merged`."""
    build, rounded = module.FSDPEngine._build_lora_module, module.FSDPEngine._merged_lora_per_tensor_param

    def build_and_mend(engine: Any, model: Any) -> Any:
        # Every worker takes the first one's weights: they follow from the seed alone.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(engine.engine_config.seed)
            made = build(engine, model)
        # Both the engine and verl's merging ask the model for it.
        made.disable_adapter = partial(without_adapter, made)
        return made

    def merged(engine: Any) -> Iterator[tuple[str, Any]]:
        """verl rounds merged weights to bf16: what is computed in fp32 would be sampled from other weights."""
        if engine._autocast_dtype != torch.float32:
            yield from rounded(engine)
            return
        names, convert = module.normalize_peft_param_name, module.convert_weight_keys
        device = module.get_device_id()
        try:
            # The context stays open until the last weight is copied: it then takes the adapter out again.
            with module.merged_lora_context(engine.module, backup_adapters=True):
                for name, weight in convert(names(engine.module.state_dict()), engine.module).items():
                    yield name, weight.to(device).full_tensor() if hasattr(weight, "full_tensor") else weight.clone()
        finally:
            if engine._is_offload_param:
                module.offload_fsdp_model_to_cpu(engine.module)

    module.FSDPEngine._build_lora_module = build_and_mend
    module.FSDPEngine._merged_lora_per_tensor_param = merged


@contextmanager
def without_adapter(model: Any) -> Iterator[None]:
    """The base model alone, for passes without gradients."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, disabled in zip(layers, before, strict=True):
            layer._disable_adapters = disabled
