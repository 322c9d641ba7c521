"""Every command of docs/training.md is run against the services: trainings as far as they are checked (`--dry-run`)."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb
from rlhf.trainer.v1.model_pb2 import CharacterTokenizer, ModelInit, ModelSource
from rlhf.type.v1.checkpoint_pb2 import Checkpoint
from rlhf.type.v1.job_state_pb2 import JobState

from services.client import Client, json_lines
from services.mesh.artifacts import ArtifactStore, Manifest
from services.supervisor import embedded
from services.trainer.training.input_references import hold_artifact
from tests.fix_runner import CONFIG
from tests.integration.client.conftest import Mesh
from tests.integration.client.test_docs import DOCUMENT, blocks, environment
from tests.integration.trainer.test_merge import adapter_over

PAGE = DOCUMENT.with_name("training.md")
# Rows for the largest batch of the page.
ROWS = 2048
OURS = ("base", "taste", "examples", "questions", "held-out", "comparisons", "held-out-comparisons")
CHECKED_ONLY = (["train"], ["recipe", "run"], ["job", "replay"], ["job", "resume"])
# They ask, and here is nobody to answer.
DELETES = (["checkpoint", "delete"], ["job", "delete"], ["model", "delete"])


def commands() -> list[list[str]]:
    text = "\n".join(blocks("sh", PAGE)).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in text.splitlines())
    return [words[1:] for words in lines if words and words[0] == "rlhf"]


@dataclass(frozen=True)
class Jobs:
    """Ids: of one that has ended, whose checkpoint is an adapter, and of one that was cancelled, to go on from."""

    ended: str
    cancelled: str


@pytest.fixture(scope="module")
def jobs(mesh: Mesh, postgres_server: embedded.Postgres, tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    """Besides them the datasets of the page, and room in the model."""
    kinds: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
        "examples": ("messages", lambda n: {"messages": [*_asked(n), _said(n)]}),
        "questions": ("prompt", lambda n: {"prompt": _asked(n), "answer": str(n)}),
        "held-out": ("prompt", lambda n: {"prompt": _asked(n), "answer": str(n)}),
        "comparisons": (
            "preference",
            lambda n: {"prompt": _asked(n), "chosen": [_said(n)], "rejected": [_said(n + 1)]},
        ),
    }
    kinds["held-out-comparisons"] = kinds["comparisons"]
    _models_with_room(postgres_server)
    with Client(home=mesh.home) as client:
        for name, (form, row) in kinds.items():
            client.datasets.create(f"page-{name}", form)
            lines = json_lines([row(n) for n in range(ROWS)])
            assert client.uploads.upload(f"page-{name}", lines, file_name="rows.jsonl").dataset_version
        params = {"batch_size": 8, "max_length": 32, "steps": 40}
        made = client.training_jobs.create("sft", model="page-base", dataset="page-examples", params=params)
        done = client.training_jobs.wait(made.name)
        assert JobState.Name(done.state) == "JOB_STATE_SUCCEEDED"
        cancelled = _cancelled(client, {**params, "steps": 1500, "save_every_steps": 20})
        _with_an_adapter(client, made.name, mesh, postgres_server, tmp_path_factory.mktemp("page"))
    return Jobs(made.name.rpartition("/")[2], cancelled.rpartition("/")[2])


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_a_command_is_taken(words: list[str], mesh: Mesh, jobs: Jobs, tmp_path: Path) -> None:
    (tmp_path / "params.toml").write_text("prompts_per_step = 16\n")
    job = jobs.cancelled if words[:2] == ["job", "resume"] else jobs.ended
    command = [_ours(word, job) for word in words if word != "--watch"]
    if any(command[: len(start)] == start for start in CHECKED_ONLY) and not {"--dry-run", "--help"} & set(command):
        command.append("--dry-run")
    done = subprocess.run(
        ["rlhf", *command], cwd=tmp_path, env=environment(mesh), capture_output=True, text=True, timeout=120
    )
    if command[:2] in DELETES and "--yes" not in command:
        assert done.returncode == 2 and "nothing was deleted" in done.stderr, done.stderr[-3000:]
        return
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def _cancelled(client: Client, params: dict[str, Any]) -> str:
    """A job that is ended after its second checkpoint."""
    job = client.training_jobs.create("sft", model="page-base", dataset="page-examples", params=params).name
    give_up = time.monotonic() + 60
    while sum(one.state == Checkpoint.STATE_READY for one in client.checkpoints.list(job)) < 2:
        assert time.monotonic() < give_up, "no checkpoint"
        time.sleep(0.1)
    client.training_jobs.cancel(job)
    client.training_jobs.wait(job)
    return job


def _ours(word: str, job: str) -> str:
    """The page's stand-ins as what there is here."""
    word = re.sub(r"^(JOB|OTHER)\b", job, word).replace("step-100", "step-40")
    setting, equals, value = word.rpartition("=")
    return f"{setting}{equals}page-{value}" if value in OURS else word


def _models_with_room(server: embedded.Postgres) -> None:
    """A language model and one that counts as a reward model: like `base`, with a context as long as the page wants."""
    with psycopg.connect(server.url_of("client_tests"), autocommit=True) as connection:
        found = connection.execute("SELECT * FROM trainer.models WHERE name LIKE '%/base'")
        columns = [column.name for column in found.description or ()]
        for name, architecture in (("base", "architecture"), ("taste", "'LlamaForSequenceClassification'")):
            changed = {
                "uid": "gen_random_uuid()",
                "name": f"parent || '/models/page-{name}'",
                "architecture": architecture,
                "context_length": "32768",
            }
            values = ", ".join(changed.get(column, column) for column in columns)
            copied = f"({', '.join(columns)}) SELECT {values} FROM trainer.models WHERE name LIKE '%/base'"
            connection.execute(f"INSERT INTO trainer.models {copied}".encode())


def _with_an_adapter(client: Client, job: str, mesh: Mesh, server: embedded.Postgres, folder: Path) -> None:
    """Put a real adapter, over a real model, in the place of what the script saved at step 40."""
    source = ModelSource(init=ModelInit(characters=CharacterTokenizer(alphabet="0123456789")))
    source.init.config.update(CONFIG)
    base = client.models.wait(client.models.import_model("page-real", source).name)
    client.models.download("page-real", folder / "base")
    adapter = adapter_over(folder / "base", folder / "adapter")
    manifest = asyncio.run(ArtifactStore(f"file://{mesh.home}/artifacts").put_folder(adapter))
    under = Jsonb({"base_model": base.name, "base_manifest_sha256": base.manifest_sha256})
    url = server.url_of("client_tests")
    asyncio.run(_held(url, f"{job}/checkpoints/step-40", manifest))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE trainer.jobs SET spec = spec || %s WHERE name = %s", (under, job))
        connection.execute(
            "UPDATE trainer.checkpoints SET kind = 'adapter', base_model = %s, manifest_sha256 = %s, size_bytes = %s"
            " WHERE name = %s",
            (base.name, manifest.sha256, manifest.size_bytes, f"{job}/checkpoints/step-40"),
        )


async def _held(url: str, name: str, manifest: Manifest) -> None:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await hold_artifact(connection, name, manifest)


def _asked(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"What is {n}?"}]


def _said(n: int) -> dict[str, str]:
    return {"role": "assistant", "content": json.dumps(n)}
