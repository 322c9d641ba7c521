"""The commands of the README, one after the other in a shell, with a small model in the place of the hub's."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_live import LLAMA

README = Path(__file__).parents[2] / "README.md"
HUB = "--source hf:Qwen/Qwen2.5-0.5B-Instruct"
SMALL = '--init config.json --characters "0123456789"'


def commands() -> str:
    (found,) = re.findall(r"## Use it\n\n```sh\n(.*?)```", README.read_text(), re.DOTALL)
    assert HUB in found
    return found.replace(HUB, SMALL)


def write_files(folder: Path) -> None:
    numbers = [f"{(7919 * index) % 10_000:04d}" for index in range(96)]
    asked = [[{"role": "user", "content": number}] for number in numbers]
    said = [[{"role": "assistant", "content": "".join(sorted(number))}] for number in numbers]
    wrong = [[{"role": "assistant", "content": number}] for number in numbers]
    rows = {
        "examples.jsonl": [{"messages": [*q, *a]} for q, a in zip(asked, said, strict=True)],
        "pairs.jsonl": [
            {"prompt": q, "chosen": a, "rejected": b} for q, a, b in zip(asked, said, wrong, strict=True) if a != b
        ],
    }
    for name, lines in rows.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = io.StringIO()
    csv.writer(table).writerows([("prompt", "answer"), *((n, "".join(sorted(n))) for n in numbers)])
    (folder / "questions.csv.gz").write_bytes(gzip.compress(table.getvalue().encode()))
    (folder / "config.json").write_text(json.dumps({**LLAMA, "max_position_embeddings": 2048}))


@pytest.mark.slow
@pytest.mark.long
def test_the_commands_of_the_readme_lead_to_a_model(tmp_path: Path) -> None:
    write_files(tmp_path)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RLHF_")}
    environment = {**kept, "RLHF_HOME": str(tmp_path / "home"), "COLUMNS": "120", "NO_COLOR": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{kept['PATH']}"
    script = commands().replace(". .venv/bin/activate\n", "")
    try:
        done = subprocess.run(
            ["bash", "-euxc", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1500
        )
    finally:
        subprocess.run(["rlhf", "down"], env=environment, capture_output=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    assert json.loads((tmp_path / "my-model" / "config.json").read_text())["model_type"] == "llama"
    assert (tmp_path / "my-model" / "model.safetensors").stat().st_size > 0
    assert "the mesh is down" in done.stderr
