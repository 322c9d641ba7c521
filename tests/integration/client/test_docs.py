"""Every block of docs/api.md and docs/rewards.md is run, in order, as a reader would: shell in one shell, Python in one
interpreter."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from services.client import Client
from tests.integration.client.conftest import Mesh

DOCUMENT = Path(__file__).parents[3] / "docs" / "api.md"
REWARDS = DOCUMENT.with_name("rewards.md")


def blocks(language: str, document: Path = DOCUMENT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)


def environment(mesh: Mesh) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RLHF_")}
    root, tools = DOCUMENT.parents[1], Path(sys.executable).parent
    paths = os.pathsep.join((str(root), str(root / "proto" / "gen")))
    return {**kept, "RLHF_HOME": str(mesh.home), "PATH": f"{tools}:{kept['PATH']}", "PYTHONPATH": paths}


def test_the_shell(mesh: Mesh, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(blocks("sh"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(mesh), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "rows.jsonl").read_text().count("\n") == 64
    for shown in ('"displayName":"Over HTTP"', "STATE_SUCCEEDED", "JOB_STATE_SUCCEEDED", "event: end", '"ticket"'):
        assert shown in done.stdout, shown
    assert "rlhf.trainer.v1.TrainerService/StreamJobEvents" in done.stdout
    assert "step 40 of attempt 1" in done.stdout


def test_the_python(mesh: Mesh, tmp_path: Path) -> None:
    program = "\n".join(blocks("python"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path, env=environment(mesh), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (tmp_path / "weights" / "model.safetensors").read_text() == "weights 40"
    assert "training_job.params.batch_size" in done.stdout
    assert "DATASET_NOT_FOUND" in done.stdout
    assert "Progress(phase='downloading'" in done.stdout


def test_the_rewards(mesh: Mesh, tmp_path: Path) -> None:
    """Each reward scores, and fails with the words that the page says it does."""
    script = "set -euo pipefail\nexec 2>&1\n" + "\n".join(blocks("sh", REWARDS))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment(mesh), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for said in (
        "numeric  ",
        '"clean": 1.0',
        "--set schema",
        "must lead into the schema",
        "must be less than longest (10)",
        "brevity/over",
        "--set components.0.params.pattern",
        "is a language model, which gives no scores",
        "can't be reached",
        "169.254.169.254:80 may not be called: RLHF_OUTBOUND_ALLOW of the trainer is loopback",
        "thanks",
        "sample 0: reward 'custom', sample 0 ('x'): its code raised ZeroDivisionError: division by zero (line 1)",
    ):
        assert said in done.stdout, f"{said}\n{done.stdout}"
    assert [line for line in done.stdout.splitlines() if line.startswith("exit")] == [
        f"exit {n}" for n in (2, 2, 2, 2, 5, 2, 1)
    ]


def test_the_page_of_rewards_has_them_all(client: Client) -> None:
    page = REWARDS.read_text()
    assert [reward.entry.id for reward in client.rewards.list() if f"`{reward.entry.id}`" not in page] == []
