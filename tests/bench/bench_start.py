"""From CreateTrainingJob to the first step: `python -m tests.bench.bench_start [--rounds 3]`. Prints; asserts no time.

On a whole mesh (`rlhf up`, a tiny model from scratch), with RLHF_TRAINER_WARM_START on and off: seconds from the job's
creation to its first step as the run reports it, and to its end. Between `up` and the first job of a mesh the fork
server is given the time of its imports.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

from services.mesh.runs import spool
from services.mesh.runs.files import SPOOL_FILE
from services.trainer.runs.records import read_from
from tests.bench.bench_training import PARAMS, answer, rows
from tests.fix_mesh import Mesh, embedded_mesh
from tests.fix_runner import CONFIG

STEPS = 20


def prepare(mesh: Mesh, root: Path) -> None:
    answer(mesh, "up")
    config = root / "config.json"
    config.write_text(json.dumps(CONFIG))
    answer(mesh, "model", "import", "tiny", "--init", str(config), "--characters", "0123456789")
    for algorithm, row_format in (("sft", "messages"), ("grpo", "prompt")):
        data = root / f"{algorithm}.jsonl"
        rows(algorithm, data)
        answer(mesh, "dataset", "upload", str(data), "--name", algorithm, "--format", row_format)


def start(mesh: Mesh, algorithm: str, name: str) -> tuple[float, float]:
    """Seconds from creation to the first step's record, and to the end."""
    values = PARAMS[algorithm] | {"steps": STEPS}
    settings = [word for key, value in values.items() for word in ("--set", f"{key}={value}")]
    answer(mesh, "train", algorithm, "--model", "tiny", "--dataset", algorithm, "--name", name, "--watch", *settings)
    job: dict[str, Any] = json.loads(mesh.rlhf("job", "show", name, "-o", "json").stdout)
    created = datetime.fromisoformat(job["createTime"]).timestamp()
    # The newest.
    attempt = max((mesh.home.root / "trainer" / "jobs").glob("*/attempts/1"), key=lambda path: path.stat().st_mtime)
    records, _ = read_from(attempt / SPOOL_FILE, 0, 1 << 30)
    first = next(record for record in records if isinstance(record, spool.Metrics) and record.step == 1)
    return first.time_ns / 1e9 - created, records[-1].time_ns / 1e9 - created


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for warm in ("on", "off"):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            with embedded_mesh(root / "home", RLHF_TRAINER_WARM_START=warm) as mesh:
                prepare(mesh, root)
                time.sleep(15)
                for algorithm in ("sft", "grpo"):
                    found = [start(mesh, algorithm, f"{algorithm}-{number}") for number in range(options.rounds)]
                    shown = ", ".join(
                        f"{what} {statistics.median(each):.1f} s ({min(each):.1f}–{max(each):.1f})"
                        for what, each in zip(("first step", "end"), zip(*found, strict=True), strict=True)
                    )
                    print(f"warm start {warm}: {algorithm}: {shown}; load {os.getloadavg()[0]:.1f}", flush=True)


if __name__ == "__main__":
    main()
