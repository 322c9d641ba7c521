"""verl's FSDP2 engine with a sequence classifier of one score in place of a language model.

A score is that of transformers' own sequence classifiers, so what is trained here is what their users get.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from safetensors.torch import save_file
from torch import Tensor
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
from verl.utils.fsdp_utils import get_fsdp_full_state_dict, load_fsdp_model_to_gpu, offload_fsdp_model_to_cpu
from verl.utils.py_functional import convert_to_regular_types
from verl.workers.engine.fsdp import transformer_impl

# Its decorator hides the class from type checkers.
Engine: Any = transformer_impl.FSDPEngineWithLMHead
PREFIX = "base_model.model."


class SequenceClassifierEngine(Engine):
    def _build_module(self) -> Any:
        config = self.model_config.hf_config
        name = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES.get(config.model_type)
        if name is None:
            raise ValueError(f"transformers has no sequence classifier for models of type {config.model_type!r}")
        config.architectures = [name]
        config.num_labels = 1
        # Of the new layer.
        torch.manual_seed(self.engine_config.seed)
        kind, self.model_config.model_type = self.model_config.model_type, "language_model"
        try:
            # verl builds what `architectures` names.
            return super()._build_module()
        finally:
            self.model_config.model_type = kind

    def _build_lora_module(self, module: Any) -> Any:
        """verl takes every model for a language model; of a classifier the new layer is trained whole."""
        module.enable_input_require_grads()
        targets: Any = convert_to_regular_types(self.model_config.target_modules)
        config = LoraConfig(
            task_type=TaskType.SEQ_CLS,
            r=self.model_config.lora_rank,
            lora_alpha=self.model_config.lora_alpha,
            lora_dropout=self.model_config.lora.get("dropout", 0.0),
            target_modules=targets,
        )
        # FSDP wants one dtype in a group of parameters.
        return get_peft_model(module, config, autocast_adapter_dtype=False)

    def prepare_model_outputs(
        self, output: Any, output_args: Any, micro_batch: Any, logits_processor_func: Any
    ) -> dict[str, Tensor]:
        """`scores`: one of each row, jagged because verl takes every output to be."""
        scores = output.logits.squeeze(-1)
        return {"scores": torch.nested.nested_tensor_from_jagged(scores, torch.arange(len(scores) + 1))}

    def save_checkpoint(
        self,
        local_path: str,
        hdfs_path: str | None = None,
        global_step: int = 0,
        max_ckpt_to_keep: int | None = None,
        **kwargs: Any,
    ) -> None:
        """verl has no exporter for classifiers: the weights are put beside the configuration that it writes."""
        super().save_checkpoint(local_path, hdfs_path, global_step, max_ckpt_to_keep, **kwargs)
        if self._is_offload_param:
            load_fsdp_model_to_gpu(self.module)
        tensors: Any = get_fsdp_full_state_dict(self.module, offload_to_cpu=True, rank0_only=True)
        if self._is_offload_param:
            offload_fsdp_model_to_cpu(self.module)
        if self.rank == 0:
            scale = self.model_config.lora_alpha / self.model_config.lora_rank if self._is_lora else 0.0
            target = Path(local_path) / "huggingface" / "model.safetensors"
            save_file(merged(tensors, scale), target, metadata={"format": "pt"})
        torch.distributed.barrier()


def merged(tensors: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The tensors of a model with adapters (PEFT's names) as those of the model itself: W + scale·B·A.

    Without adapters they are given back as they are.
    """
    plain: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if ".lora_" in name or ".original_module." in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = key.removesuffix(".base_layer.weight")
            a, b = (tensors[f"{layer}.lora_{matrix}.default.weight"].float() for matrix in "AB")
            tensor = (tensor.float() + scale * (b @ a)).to(tensor.dtype)
        name = name.replace(".base_layer.", ".").replace(".modules_to_save.default.", ".")
        plain[name] = tensor.contiguous()
    return plain
