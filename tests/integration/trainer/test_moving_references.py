"""A home that earlier code made comes up with references to all that it needs, and loses nothing."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from services.mesh.artifacts import Manifest, references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.gc import Collector
from services.mesh.artifacts.marker import claim
from services.mesh.db.postgres import Database

P = "projects/default"
# What had been applied by the last code without references.
BEFORE = {
    "trainer": {
        "services.mesh": ["0001_mesh", "0002_events_below", "0003_job_trace", "0004_ages", "0005_job_warnings"],
        "services.trainer": ["0001_trainer", "0002_checkpoints", "0003_adapters", "0004_unconfirmed"],
    },
    "dataset": {
        "services.mesh": ["0001_mesh", "0002_events_below", "0003_job_trace", "0004_ages", "0005_job_warnings"],
        "services.dataset": ["0001_dataset"],
    },
}


def as_before(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for schema, packages in BEFORE.items():
            connection.execute(f"CREATE SCHEMA {schema}".encode())
            connection.execute(f"SET search_path TO {schema}".encode())
            connection.execute("CREATE TABLE migrations (file text PRIMARY KEY, apply_time timestamptz DEFAULT now())")
            for package, scripts in packages.items():
                for name in scripts:
                    connection.execute((files(package) / "migrations" / f"{name}.sql").read_text().encode())
                    connection.execute("INSERT INTO migrations (file) VALUES (%s)", (f"{package}/{name}.sql",))


class Home:
    """Rows as the code before wrote them, and what is needed of the store."""

    def __init__(self, url: str, store: CollectingStore, folder: Path) -> None:
        self.connection = psycopg.connect(url, autocommit=True)
        self.store = store
        self.folder = folder
        self.needed: set[str] = set()

    async def artifact(self, *texts: str, needed: bool = True) -> Manifest:
        folder = self.folder / str(uuid.uuid4())
        folder.mkdir(parents=True)
        for number, text in enumerate(texts):
            (folder / f"model-{number}.safetensors").write_text(text)
        manifest = await self.store.put_folder(folder)
        if needed:
            self.needed |= {manifest.sha256, *(file.sha256 for file in manifest.files)}
        return manifest

    async def blob(self, text: str) -> str:
        sha256 = await self.store.put_blob(text.encode())
        self.needed.add(sha256)
        return sha256

    def insert(self, table: str, **columns: Any) -> None:
        names, values = ", ".join(columns), ", ".join(["%s"] * len(columns))
        self.connection.execute(f"INSERT INTO {table} ({names}) VALUES ({values})".encode(), list(columns.values()))

    def model(self, name: str, manifest: Manifest, state: str = "READY") -> None:
        columns = {"uid": uuid.uuid4(), "parent": P, "display_name": "", "source": Jsonb({}), "labels": Jsonb({})}
        self.insert(
            "trainer.models", name=f"{P}/models/{name}", state=state, manifest_sha256=manifest.sha256, **columns
        )

    def job(self, name: str, spec: dict[str, Any], *, ended: bool, kind: str = "training") -> uuid.UUID:
        uid = uuid.uuid4()
        state, end = ("SUCCEEDED", "now") if ended else ("RUNNING", None)
        self.insert(
            "trainer.jobs", uid=uid, kind=kind, name=name, parent=P, state=state, spec=Jsonb(spec), end_time=end
        )
        return uid

    def checkpoint(self, job: uuid.UUID, name: str, state: str, manifest: Manifest, kind: str = "full") -> None:
        step = int(name.rpartition("-")[2])
        columns = {"job_uid": job, "step": step, "attempt": 1, "parents": [], "base_model": ""}
        self.insert(
            "trainer.checkpoints", name=name, state=state, kind=kind, manifest_sha256=manifest.sha256, **columns
        )

    def version(self, number: int, sha256: str, chunks: Sequence[str], source: str) -> None:
        if number == 1:
            self.insert(
                "dataset.datasets",
                uid=uuid.UUID(int=1),
                name=f"{P}/datasets/d",
                parent=P,
                display_name="",
                format="messages",
                labels=Jsonb({}),
                version_count=2,
            )
        key = {"dataset_uid": uuid.UUID(int=1), "number": number}
        facts = {"format": "messages", "row_count": 1, "size_bytes": 1, "statistics": Jsonb({})}
        name = f"{P}/datasets/d/versions/{number}"
        self.insert(
            "dataset.versions", **key, **facts, name=name, sha256=sha256, source_sha256=source, source_file_name="f"
        )
        for index, chunk in enumerate(chunks):
            place = {"first_row_index": index, "row_count": 1, "offset_bytes": index, "size_bytes": 1}
            self.insert("dataset.chunks", **key, **place, index=index, sha256=chunk)


async def fill(home: Home) -> None:
    base, judge = await home.artifact("base"), await home.artifact("judge")
    home.model("base", base)
    home.model("judge", judge)
    home.model("gone-wrong", await home.artifact("of a failed import", needed=False), "FAILED")
    first = await home.blob("chunk one")
    home.version(1, "1" * 64, [first, await home.blob("chunk two")], await home.blob("the file"))
    home.version(2, "2" * 64, [first], await home.blob("the second file"))
    spec = {
        "base_model": f"{P}/models/base",
        "base_manifest_sha256": base.sha256,
        "base_under": [],
        "reward_models": {},
        "dataset_version": f"{P}/datasets/d/versions/1",
        "dataset_sha256": "1" * 64,
        "validation_dataset_version": "",
    }
    done = home.job(f"{P}/trainingJobs/done", spec, ended=True)
    adapter = await home.artifact("adapter", "shared")
    pruned = await home.artifact("pruned", needed=False)
    home.checkpoint(done, f"{P}/trainingJobs/done/checkpoints/step-1", "PRUNED", pruned)
    home.checkpoint(done, f"{P}/trainingJobs/done/checkpoints/step-2", "READY", adapter, "adapter")
    # Let go by its rule and not yet collected: one file of it is another's, too.
    home.insert("trainer.doomed_manifests", sha256=(await home.artifact("shared", "let go", needed=False)).sha256)
    # Of a model that was deleted under the running job's feet, as far as names go.
    under = {"name": f"{P}/trainingJobs/done/checkpoints/step-2", "manifest_sha256": adapter.sha256}
    running = {
        **spec,
        "base_under": [{"name": f"{P}/models/base", "manifest_sha256": base.sha256}],
        "base_model": under["name"],
        "base_manifest_sha256": adapter.sha256,
        "reward_models": {f"{P}/models/judge": judge.sha256},
        "validation_dataset_version": f"{P}/datasets/d/versions/2",
        "validation_dataset_sha256": "2" * 64,
    }
    home.job(f"{P}/trainingJobs/running", running, ended=False)
    home.job(f"{P}/models/merged", {"source": {}, "base_under": [under]}, ended=False, kind="import")


async def test_a_home_of_before_loses_nothing_and_what_it_had_left_behind_goes(
    postgres_url: str, tmp_path: Path
) -> None:
    as_before(postgres_url)
    store = CollectingStore(f"file://{tmp_path}/store")
    home = Home(postgres_url, store, tmp_path / "made")
    await fill(home)
    left_behind = set(await store.blobs()) - home.needed
    assert len(left_behind) == 6, "two whole artifacts, and a manifest and a file that were let go"
    async with Database(postgres_url, "dataset") as dataset, Database(postgres_url, "trainer") as trainer:
        await dataset.migrate("services.mesh", "services.dataset")
        await claim(dataset, store)
        first = Collector(dataset, store, 0)
        await first.collect()
        assert await first.sweep() == 0, "the trainer has not come up yet"
        await trainer.migrate("services.mesh", "services.trainer")
        collector = Collector(trainer, store, 0)
        await collector.collect()
        await collector.sweep()
        assert set(await store.blobs()) == home.needed
        await trainer.migrate("services.mesh", "services.trainer")
        async with trainer.transaction() as connection:
            running = f"{P}/trainingJobs/running"
            assert await references.users(connection, f"{P}/models/judge") == [running]
            step = f"{P}/trainingJobs/done/checkpoints/step-2"
            assert await references.users(connection, step) == [f"{P}/models/merged", running]
            assert await references.users(connection, f"{P}/models/base") == [step, running]
            assert await references.users(connection, f"{P}/datasets/d") == [running]
            # Both services' names go; the job's inputs stay until it has ended.
            for holder in (f"{P}/datasets/d", f"{P}/models/base", f"{P}/models/judge", step):
                await references.drop_below(connection, holder)
        await collector.collect()
        sources = {await store.put_blob(text) for text in (b"the file", b"the second file")}
        assert set(await store.blobs()) - sources == home.needed - sources
        async with trainer.transaction() as connection:
            await references.drop_inputs(connection, running)
            await references.drop_inputs(connection, f"{P}/models/merged")
        await collector.collect()
        assert set(await store.blobs()) == sources
    home.connection.close()
