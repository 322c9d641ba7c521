"""The environment of a job's processes: the runner's own, and that of every Ray worker it starts."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from services.mesh.processes.fork_server import client as fork_server
from services.trainer.training.launch_plan import Device

PLUGIN = "services.trainer.verl.patches.plugin"
SETUP_HOOK = "services.trainer.verl.patches.hooks.install_common"
# 32 bytes in hexadecimal: who holds them may speak with the run's queue.
SECRET = "RLHF_RUN_SECRET"  # noqa: S105 - its name
# A folder of the run's own, where its training processes find each other.
RENDEZVOUS = "RLHF_RUN_RENDEZVOUS"
# "0" where the model's own dropout is left out in training.
DROPOUT = "RLHF_RUN_DROPOUT"
# The attempt's folder.
FOLDER = "RLHF_RUN_FOLDER"


def variables(device: Device) -> dict[str, str]:
    """What verl, torch and the tokenizers read once, when they are imported."""
    common = {
        "VERL_USE_EXTERNAL_MODULES": PLUGIN,
        "TRANSFER_QUEUE_ENABLE": "1",
        # Models come from folders; nothing is asked of a hub.
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Where locks and sockets lie; the worker's folder for this run, which goes with it.
        "TMPDIR": tempfile.gettempdir(),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HYDRA_FULL_ERROR": "1",
        # What they say of themselves; see patches/quiet.py.
        "VERL_LOGGING_LEVEL": "ERROR",
        "TQ_LOGGING_LEVEL": "ERROR",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TQDM_DISABLE": "1",
        # Else Ray puts a `print` of its own over that of patches/quiet.py.
        "RAY_TQDM_PATCH_PRINT": "0",
    }
    if device == "cuda":
        return {**common, "VERL_PLATFORM": "nvidia"}
    # With more threads than cores a batch took forty times as long.
    # gloo listens on the interface of the host's name unless told; a CPU run is on one machine.
    common["GLOO_SOCKET_IFNAME"] = "lo"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {**common, **threads, "VERL_PLATFORM": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def of_one_run(rendezvous: str, folder: Path, dropout: bool) -> dict[str, str]:
    """What the processes of one attempt share with each other and with nobody else; and who forks them, if anybody."""
    forking = {name: os.environ[name] for name in (fork_server.VARIABLE,) if os.environ.get(name)}
    own = {SECRET: secrets.token_hex(32), RENDEZVOUS: rendezvous, FOLDER: str(folder), DROPOUT: str(int(dropout))}
    return own | forking


def apply(values: dict[str, str]) -> None:
    """Set this process's environment; to be called before verl is imported."""
    os.environ.update(values)
