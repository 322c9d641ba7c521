"""From a checkpoint as verl writes it to one as we keep it: `step-N/weights` and `step-N/training_state`.

verl has gathered the whole model into `huggingface/`. A full model moves as it is; of an adapter run only the adapter
is kept as weights, in PEFT form.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec

from services.mesh.runs.spool import SpoolWriter
from services.models.probe import PROBE_FILE, Probe
from services.trainer.training.launch_plan import LaunchPlan, ResumePoint
from services.trainer.training.tasks import RlTask
from services.trainer.verifier.requests import CheckRequest
from services.trainer.verl.verification.side_process import SideProcess

WEIGHTS, STATE = "weights", "training_state"
# Left out beside an adapter, where they would make the folder look like a whole model.
BASE_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json")


class CheckpointPublisher:
    """Takes what verl has saved, says so in the spool, and has it checked while training goes on."""

    def __init__(self, plan: LaunchPlan, spool: SpoolWriter, side: SideProcess) -> None:
        self._plan = plan
        self._spool = spool
        self._side = side
        self._folder = Path(plan.work_dir) / "checkpoints"
        self.last_step = 0

    def check_base(self) -> None:
        """Have the model answered for that training starts from; a resumed run has done so in an earlier attempt."""
        if self._plan.validation is not None and self._plan.resume_from is None:
            self._side.check(CheckRequest(step=0, path=self._plan.model_path, kind="full", checkpoint=False))

    def publish(self, step: int, saved: Path, model_folder: Path, sample: bool = True) -> None:
        """`saved` is verl's folder of this step, `model_folder` the one in it that has `huggingface/`."""
        target = self._folder / f"step-{step}"
        target.mkdir(parents=True, exist_ok=True)
        exported = model_folder / "huggingface"
        # verl's template and tokenizer files are there already, beside the weights.
        if self._plan.adapter:
            write_adapter(exported, model_folder / "lora_train_meta.json", target / WEIGHTS, self._plan)
            shutil.rmtree(exported)
        else:
            finish_config(exported)
            exported.rename(target / WEIGHTS)
        state = target / STATE
        request = CheckRequest(
            step=step,
            path=str(target / WEIGHTS),
            kind=self._plan.checkpoint_kind,
            training_state_path=str(state),
            sample=sample,
            probe=_probe(model_folder / PROBE_FILE),
        )
        state.mkdir(exist_ok=True)
        # The step stands in the folder's name, where verl looks for it on resuming.
        saved.rename(state / saved.name)
        self._spool.append(self._side.record(request, "verifying"))
        self._side.check(request)
        self.last_step = step


def _probe(path: Path) -> Probe | None:
    """What the weights answered while they were in training; None where they were not asked."""
    return msgspec.json.decode(path.read_bytes(), type=Probe) if path.exists() else None


def resume_folder(point: ResumePoint) -> Path:
    """verl's folder in a kept training state. Raises ValueError where it is missing or of another step."""
    wanted = f"global_step_{point.step}"
    folder = Path(point.path) / wanted
    if not folder.is_dir():
        found = ", ".join(sorted(path.name for path in Path(point.path).glob("*"))) or "nothing"
        raise ValueError(f"the training state at {point.path} has no {wanted}; it has {found}")
    return folder


def stored_dtype(folder: Path) -> str:
    """The dtype of the tensors in a folder's first safetensors file, `float32` for example."""
    from safetensors import safe_open

    with safe_open(next(iter(sorted(folder.glob("*.safetensors")))), framework="pt") as file:
        return str(file.get_tensor(next(iter(file.keys()))).dtype).removeprefix("torch.")


def finish_config(folder: Path) -> None:
    """Let config.json name the dtype the tensors have; verl writes bfloat16 there whatever they are."""
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["dtype"] = stored_dtype(folder)
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def write_adapter(exported: Path, settings: Path, target: Path, plan: LaunchPlan) -> None:
    """Write the LoRA tensors of `exported` to `target` as PEFT has them, with the tokenizer beside them."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    target.mkdir()
    tensors = {}
    for shard in sorted(exported.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                if "lora_" in key:
                    # PEFT leaves the adapter's own name out of the file.
                    tensors[_peft_key(key)] = file.get_tensor(key)
    if not tensors:
        raise ValueError("the checkpoint has no adapter tensors")
    save_file(tensors, target / "adapter_model.safetensors", metadata={"format": "pt"})
    (target / "adapter_config.json").write_bytes(_adapter_config(settings, plan))
    for path in exported.iterdir():
        of_the_base = path.suffix == ".safetensors" or path.name in BASE_MODEL_FILES
        if not of_the_base:
            shutil.copy2(path, target / path.name)


def _peft_key(key: str) -> str:
    plain = key.replace(".default.weight", ".weight")
    return plain if plain.startswith("base_model.model.") else f"base_model.model.{plain}"


def _adapter_config(settings: Path, plan: LaunchPlan) -> bytes:
    from peft import LoraConfig

    meta = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
    prefix = "actor_rollout_ref.model" if isinstance(plan.task, RlTask) else "model"
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=int(meta.get("r", plan.verl[f"{prefix}.lora_rank"])),
        lora_alpha=meta.get("lora_alpha", plan.verl[f"{prefix}.lora_alpha"]),
        target_modules=plan.verl[f"{prefix}.target_modules"],
        lora_dropout=plan.verl.get(f"{prefix}.lora.dropout", 0.0),
        inference_mode=True,
        base_model_name_or_path=plan.base_name or None,
    ).to_dict()
    readable = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
    return msgspec.json.format(msgspec.json.encode(readable), indent=2)
