"""The environment of a job's processes: the runner's own, and that of every Ray worker it starts."""

from __future__ import annotations

import os

from services.trainer.plan import Device

PLUGIN = "services.trainer.verl.plugin"


def variables(device: Device) -> dict[str, str]:
    """What verl, torch and the tokenizers read once, when they are imported."""
    common = {
        "VERL_USE_EXTERNAL_MODULES": PLUGIN,
        "TRANSFER_QUEUE_ENABLE": "1",
        # Models come from folders; nothing is asked of a hub.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
    }
    if device == "cuda":
        return {**common, "VERL_PLATFORM": "cuda"}
    # With more threads than cores a batch took forty times as long.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**common, **threads, "VERL_PLATFORM": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def apply(device: Device) -> None:
    """Set this process's environment; to be called before verl is imported."""
    os.environ.update(variables(device))
