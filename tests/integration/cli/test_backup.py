"""`rlhf backup`, the loss of everything, `rlhf restore`: over a real mesh."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from services.mesh.artifacts.store import hash_file
from services.mesh.processes import procfs
from tests.fix_live import LLAMA
from tests.fix_mesh import Mesh, embedded_mesh

ROWS = [{"prompt": [{"role": "user", "content": f"{number:04d}"}], "answer": str(number)} for number in range(200)]
# Nothing is trained here, and only trainings wait for Ray.
NO_RAY = {"RLHF_RAY_ADDRESS": "127.0.0.1:1"}
# A run's files as they lie while it trains; its process is no part of what is tried here.
JOB, ATTEMPT = "0190b5a0-0000-7000-8000-000000000001", 1


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    root = tmp_path_factory.mktemp("backup")
    with embedded_mesh(root / "home", **NO_RAY) as mesh:
        done = mesh.rlhf("up")
        assert done.returncode == 0, done.stderr
        fill(mesh, root)
        yield mesh


@pytest.fixture(scope="module")
def saved(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backup of the mesh while it is up."""
    folder = tmp_path_factory.mktemp("saved") / "backup"
    done = mesh.rlhf("backup", str(folder))
    assert done.returncode == 0, done.stderr
    return folder


def fill(mesh: Mesh, folder: Path) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "config.json").write_text(json.dumps(LLAMA))
    secrets = mesh.home.root / "secrets"
    secrets.mkdir(mode=0o700)
    (secrets / "judge").write_text("of the judge\n")
    for words in (
        ("dataset", "upload", str(folder / "rows.jsonl"), "--name", "digits", "--format", "prompt"),
        ("model", "import", "tiny", "--init", str(folder / "config.json"), "--characters", "0123456789"),
    ):
        done = mesh.rlhf(*words)
        assert done.returncode == 0, done.stderr


def contents(mesh: Mesh, folder: Path, kinds: tuple[str, ...] = ("dataset", "model", "job")) -> dict[str, Any]:
    """What a user has: rows, the model's files, jobs, and what there is to read of them."""
    shutil.rmtree(folder, ignore_errors=True)
    done = mesh.rlhf("model", "download", "tiny", "--to", str(folder))
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(folder)): hash_file(path) for path in folder.rglob("*") if path.is_file()}
    # Parsed: the order of keys in a map is each process's own.
    listed = [json.loads(mesh.rlhf(kind, "list", "-o", "json").stdout) for kind in kinds]
    done = mesh.rlhf("dataset", "rows", "digits", "--limit", "0", "-o", "json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == len(ROWS) and all(listed[:2])
    return {"files": files, "listed": listed, "rows": rows, "token": mesh.home.token.read_text()}


def stored(mesh: Mesh) -> set[str]:
    return {path.name for path in (mesh.home.root / "artifacts").glob("[0-9a-f][0-9a-f]/*")}


def lose_everything(mesh: Mesh) -> None:
    pids = mesh.processes()
    assert len(pids) > 5
    for pid in pids:
        procfs.kill([pid], signal.SIGKILL)
    mesh.rlhf("down", "--force")
    shutil.rmtree(mesh.home.root)


def test_after_everything_is_lost_a_backup_brings_all_of_it_back(mesh: Mesh, tmp_path: Path) -> None:
    before = contents(mesh, tmp_path / "before")
    folder = tmp_path / "backup"
    done = mesh.rlhf("backup", str(folder), "-o", "json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["corrupt"] == [] and int(told["sizeBytes"]) == int(told["copiedBytes"]) > 0
    assert stored(mesh) == {path.name for path in folder.glob("artifacts/*/*")}
    assert not (mesh.home.root / "backing-up").exists()
    again = json.loads(mesh.rlhf("backup", str(folder), "-o", "json").stdout)
    assert again["files"] == told["files"]
    assert (
        int(again["copiedBytes"])
        < int(told["sizeBytes"]) - sum(path.stat().st_size for path in folder.glob("artifacts/*/*")) + 100_000
    )
    assert len(list(folder.glob("state-*"))) == 1
    assert all(path.stat().st_mode & 0o077 == 0 for path in (folder, *folder.glob("state-*"), folder / "backup.json"))
    lose_everything(mesh)
    done = mesh.rlhf("restore", str(folder))
    assert done.returncode == 0, done.stderr
    assert (mesh.home.root / "secrets" / "judge").read_text() == "of the judge\n"
    assert [path for path in (mesh.home.root, mesh.home.token) if path.stat().st_mode & 0o077] == []
    up = mesh.rlhf("up")
    assert up.returncode == 0, up.stderr
    assert contents(mesh, tmp_path / "after") == before


def test_a_damaged_blob_is_named_and_leaves_no_home(mesh: Mesh, saved: Path, tmp_path: Path) -> None:
    blob = max(saved.glob("artifacts/*/*"), key=lambda path: path.stat().st_size)
    whole = blob.read_bytes()
    blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = mesh.rlhf("restore", str(saved), "--home", str(tmp_path / "home"))
    assert done.returncode != 0
    assert blob.name in done.stderr and "damaged" in done.stderr
    assert not (tmp_path / "home").exists()
    blob.unlink()
    assert "is missing" in mesh.rlhf("restore", str(saved), "--home", str(tmp_path / "home")).stderr
    blob.write_bytes(whole)


def test_a_backup_that_broke_off_is_none_and_a_home_in_use_is_left_alone(
    mesh: Mesh, saved: Path, tmp_path: Path
) -> None:
    shutil.copytree(saved, tmp_path / "half")
    (tmp_path / "half" / "backup.json").unlink()
    done = mesh.rlhf("restore", str(tmp_path / "half"), "--home", str(tmp_path / "home"))
    assert done.returncode == 5 and "there is no backup.json" in done.stderr
    before = sorted(mesh.home.root.iterdir())
    done = mesh.rlhf("restore", str(saved))
    assert done.returncode == 5 and "is not empty" in done.stderr
    assert sorted(mesh.home.root.iterdir()) == before


@pytest.mark.parametrize("path", ["../../token", "run/state.json", "/etc/passwd", "secrets/../../x"])
def test_a_backup_puts_nothing_where_it_does_not_belong(mesh: Mesh, saved: Path, tmp_path: Path, path: str) -> None:
    shutil.copytree(saved, tmp_path / "other")
    document = json.loads((saved / "backup.json").read_text())
    document["files"].append([path, 0, hash_file(Path(os.devnull))])
    (tmp_path / "other" / "backup.json").write_text(json.dumps(document))
    done = mesh.rlhf("restore", str(tmp_path / "other"), "--home", str(tmp_path / "home"))
    assert done.returncode == 1 and "backup.json is damaged" in done.stderr
    assert not (tmp_path / "home").exists()


def test_a_folder_that_cannot_be_meant_is_refused(mesh: Mesh, saved: Path, tmp_path: Path) -> None:
    del saved
    assert "lost together" in mesh.rlhf("backup", str(mesh.home.root / "backup")).stderr
    (tmp_path / "diary").write_text("mine")
    done = mesh.rlhf("backup", str(tmp_path))
    assert done.returncode == 5 and "such as diary" in done.stderr
    assert sorted(tmp_path.iterdir()) == [tmp_path / "diary"]


def test_a_blob_that_the_store_has_lost_is_named_and_the_rest_is_saved(mesh: Mesh, tmp_path: Path) -> None:
    blob = min((mesh.home.root / "artifacts").glob("[0-9a-f][0-9a-f]/*"), key=lambda path: path.stat().st_size)
    whole = blob.read_bytes()
    blob.write_bytes(b"x" * len(whole))
    done = mesh.rlhf("backup", str(tmp_path / "backup"))
    blob.write_bytes(whole)
    assert done.returncode == 1 and blob.name in done.stderr
    assert {path.name for path in (tmp_path / "backup").glob("artifacts/*/*")} == stored(mesh) - {blob.name}


INSERT_JOB = """INSERT INTO trainer.jobs (uid, kind, name, parent, state, spec, end_time)
 VALUES (%(uid)s, 'training', 'projects/default/trainingJobs/kept', 'projects/default', 'CANCELLED', '{}', now())"""
INSERT_CHECKPOINT = """INSERT INTO trainer.checkpoints
 (job_uid, step, name, attempt, kind, state, base_model, parents, training_state_path)
 VALUES (%(uid)s, 3, 'projects/default/trainingJobs/kept/checkpoints/3', 1, 'full', 'READY', 'm', '{}', %(path)s)"""


def add_training(mesh: Mesh) -> None:
    """An ended job with a checkpoint whose training state is kept, and a spool that was not read to its end."""
    attempt = mesh.home.root / "trainer" / "jobs" / JOB / "attempts" / str(ATTEMPT)
    (attempt / "state").mkdir(parents=True)
    (attempt / "state" / "weights").write_text("trained")
    (attempt / "spool.jsonl").write_text("read\nnot read\n")
    with psycopg.connect(mesh.endpoints()["postgres_url"]) as connection:
        connection.execute(INSERT_JOB, {"uid": JOB})
        connection.execute(INSERT_CHECKPOINT, {"uid": JOB, "path": str(attempt / "state")})
        connection.execute(
            "INSERT INTO trainer.spools (job_uid, attempt, record_offset_bytes) VALUES (%s, %s, 5)", (JOB, ATTEMPT)
        )


def test_a_mesh_that_is_down_is_saved_and_moves_to_another_home(mesh: Mesh, tmp_path: Path) -> None:
    before = contents(mesh, tmp_path / "before", ("dataset", "model"))
    add_training(mesh)
    assert mesh.rlhf("down").returncode == 0
    done = mesh.rlhf("backup", str(tmp_path / "backup"))
    assert done.returncode == 0, done.stderr
    assert "the mesh is not up" in mesh.rlhf("status").stderr
    with embedded_mesh(tmp_path / "other", **NO_RAY) as other:
        done = other.rlhf("restore", str(tmp_path / "backup"), "--home", str(other.home.root))
        assert done.returncode == 0, done.stderr
        attempt = other.home.root / "trainer" / "jobs" / JOB / "attempts" / str(ATTEMPT)
        assert (attempt / "spool.jsonl").read_text() == "read\n"
        assert (attempt / "state" / "weights").read_text() == "trained"
        assert other.rlhf("up").returncode == 0
        with psycopg.connect(other.endpoints()["postgres_url"]) as connection:
            row = connection.execute("SELECT training_state_path FROM trainer.checkpoints").fetchone()
        assert row == (str(attempt / "state"),)
        assert contents(other, tmp_path / "after", ("dataset", "model")) == before
