"""The records of training runs: those of every run, and checkpoints."""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec

from services.mesh.runs import spool
from services.mesh.runs.spool import Record
from services.trainer.training.tasks import CheckpointKind


class Checkpoint(Record, frozen=True, kw_only=True, tag="checkpoint"):
    """A checkpoint's weights in Hugging Face form at `path`.

    It is written once as `verifying` and once more as `ready` (loaded, tried, hashed) or `corrupt`. `manifest_sha256`
    and `size_bytes` are those of the files under `path`; both are empty until the state is `ready`.
    """

    step: int
    kind: CheckpointKind
    state: Literal["verifying", "ready", "corrupt"]
    path: str
    training_state_path: str
    manifest_sha256: str = ""
    size_bytes: int = 0
    metrics: dict[str, float] = msgspec.field(default_factory=dict)
    # Version by package of what made it.
    software: dict[str, str] = msgspec.field(default_factory=dict)
    # What was found to be wrong with one that is `corrupt`.
    reason: str = ""


DECODER = spool.decoder(Checkpoint)
read_from = partial(spool.read_from, reader=DECODER)
read_all = partial(spool.read_all, reader=DECODER)
