"""Requests of a training run to its verifier: JSON lines on standard input."""

from __future__ import annotations

import os
import queue
import sys
import threading

import msgspec

from services.models.probe import Probe
from services.trainer.training.tasks import CheckpointKind


class CheckRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Sample the weights at `path` (where `sample`), and say whether they are sound (where `checkpoint`).

    The weights of step 0 are the model that training started from: sampled, but no checkpoint.
    """

    step: int
    path: str
    kind: CheckpointKind
    training_state_path: str = ""
    sample: bool = True
    checkpoint: bool = True
    # What the weights answered while they were in training; None where nobody asked them.
    probe: Probe | None = None


def requests_from_parent() -> queue.Queue[CheckRequest | None]:
    """Read requests from standard input in a thread; None is the last. Ends the process when its parent is gone."""
    requests: queue.Queue[CheckRequest | None] = queue.Queue()

    def follow() -> None:
        for line in sys.stdin.buffer:
            if b'"finish"' in line:
                requests.put(None)
                return
            requests.put(msgspec.json.decode(line, type=CheckRequest))
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
    return requests
