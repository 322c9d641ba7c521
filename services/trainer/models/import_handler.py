"""Carrying out model imports: get or make the folder, check it in a process of its own, store it."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

from services.mesh.artifacts import references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import NO_ROOM, FailedPrecondition, ResourceExhausted
from services.mesh.jobs.store import Jobs, Lease, State
from services.mesh.jobs.worker import JobResult, Retry
from services.models.folder import UnusableModelError, check_new
from services.models.process import WeightsProcess
from services.trainer.entities import Layer
from services.trainer.models.folder_copy import copy_folder
from services.trainer.models.weights_cache import WeightsCache
from services.trainer.settings import Settings
from services.trainer.store import models as store
from services.trainer.training.input_references import hold_artifact

MAX_ATTEMPTS = 3


class ImportHandler:
    """The mesh worker's handler of model imports."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        jobs: Jobs,
        artifacts: CollectingStore,
        weights: WeightsCache,
        process: WeightsProcess,
    ) -> None:
        self._settings = settings
        self._database = database
        self._jobs = jobs
        self._artifacts = artifacts
        self._weights = weights
        self._process = process

    async def run(self, lease: Lease, cancelled: asyncio.Event) -> JobResult:
        async with self._database.transaction() as connection:
            attempt = await self._jobs.begin_attempt(connection, lease)
        if attempt > MAX_ATTEMPTS:
            raise FailedPrecondition(
                "IMPORT_FAILED", f"the import died {MAX_ATTEMPTS} times; the worker's log tells why"
            )
        folder = self._settings.jobs_folder / str(lease.job.uid)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            return await self._import(lease, folder)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            message = "there is no room left on the disk; free some and import it again under another name"
            raise ResourceExhausted("DISK_FULL", message) from error
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _import(self, lease: Lease, folder: Path) -> JobResult:
        facts = await self._bring(lease, folder / "model")
        # Of what is there already nothing is stored again.
        manifest = await self._artifacts.put_folder(Path(facts["folder"]))

        async def then(connection: Connection) -> None:
            await references.lock(connection)
            # What had the same bytes may have been let go since they were found to be in the store already.
            if await self._artifacts.missing(manifest):
                raise Retry("its files were let go meanwhile with what had the same ones", 0)
            columns = {
                "architecture": facts["architecture"],
                "parameter_count": facts["parameters"],
                "context_length": facts["context_length"] or 0,
                "vocabulary_size": facts["vocabulary_size"],
                "manifest_sha256": manifest.sha256,
                "size_bytes": manifest.size_bytes,
            }
            await store.ready(connection, lease.job.name, columns)
            await hold_artifact(connection, lease.job.name, manifest)

        return JobResult(State.SUCCEEDED, then=then)

    async def _bring(self, lease: Lease, model: Path) -> dict[str, Any]:
        """The facts of what is to be stored, and its `folder`: `model`, or one of the cache."""
        source, ask = lease.job.spec["source"], self._process.ask
        if "checkpoint" in source:
            layers = [Layer(**layer) for layer in lease.job.spec["base_under"]]
            if len(layers) > 1:
                return {**await self._weights.merge(layers, model), "folder": model}
            model = await self._weights.materialize(layers)
            facts = await ask("inspect", str(model))
        elif "path" in source:
            await asyncio.to_thread(self._copy, Path(source["path"]), model)
            facts = await ask("inspect", str(model))
        elif "hub" in source:
            await ask("fetch", str(model), "--source", source["hub"].removeprefix("hf:"))
            facts = await ask("inspect", str(model))
        else:
            spec = model.with_name("spec.json")
            spec.write_text(json.dumps(await self._init_spec(source["init"])))
            facts = await ask("init", str(model), "--spec", str(spec), "--seed", str(source["init"]["seed"]))
        return {**facts, "folder": model}

    def _copy(self, source: Path, model: Path) -> None:
        """Copy a folder, checked before, so that no fifo is waited for; the copy is checked as what is stored."""
        try:
            check_new(source)
            copy_folder(source, self._settings.model_roots, model)
        except UnusableModelError as error:
            raise FailedPrecondition("UNUSABLE_MODEL", str(error)) from error
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise FailedPrecondition("UNUSABLE_MODEL", f"{source} cannot be read: {error.strerror}") from error

    async def _init_spec(self, init: dict[str, Any]) -> dict[str, Any]:
        if "characters" in init:
            return {"config": init["config"], "tokenizer": {"kind": "characters", "alphabet": init["characters"]}}
        async with self._database.transaction() as connection:
            model = await store.get(connection, init["tokenizer_model"])
        if model is None:
            raise FailedPrecondition("MODEL_NOT_FOUND", f"{init['tokenizer_model']} was deleted meanwhile")
        path = await self._artifacts.fetch(model.manifest_sha256, self._settings.cache_folder / "models")
        return {"config": init["config"], "tokenizer": str(path)}
