"""Models: what jobs start from, and how they come in."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from services.mesh import names
from services.mesh.artifacts import ArtifactFile, references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound, Violation
from services.mesh.jobs.store import Job, Jobs, State
from services.mesh.rpc.idempotency import RequestKey, claim, find_previous
from services.mesh.rpc.labels import check_labels
from services.mesh.rpc.pagination import Page, PageRequest
from services.mesh.validation.partial import find_or_report
from services.trainer.checkpoints.corruption import Corruption
from services.trainer.entities import BaseModel, Layer, Model, ModelState, NewModel
from services.trainer.models import import_paths
from services.trainer.store import checkpoints
from services.trainer.store import models as store
from services.trainer.training.input_references import check_unused, hold_layers

IMPORT = "import"
_HUB = re.compile(r"hf:([\w.-]{1,96}/[\w.-]{1,96})(@[\w./-]{1,128})?")


class Models:
    """Use cases. `checkpoint` finds the weights of one, or raises InvalidArgument or NotFound with a text for the
    caller."""

    def __init__(
        self,
        database: Database,
        jobs: Jobs,
        artifacts: CollectingStore,
        corruption: Corruption,
        roots: tuple[Path, ...],
        checkpoint: Callable[[str], Awaitable[BaseModel]],
    ) -> None:
        self._database = database
        self._jobs = jobs
        self._artifacts = artifacts
        self._corruption = corruption
        self._roots = roots
        self._checkpoint = checkpoint

    async def import_model(self, new: NewModel, key: RequestKey, *, validate_only: bool) -> Model | None:
        """Accept a model, in place of one of the same name whose import failed; a worker brings it in. None when only
        asked to check. Raises InvalidArgument."""
        async with self._database.transaction() as connection:
            if made := await find_previous(connection, key):
                return await self._get(connection, made)
        violations = await self._check(new, key)
        layers = await self._layers(new.source, violations)
        if violations:
            raise InvalidArgument(violations)
        if validate_only:
            return None
        uid = names.uuid7()
        name = names.child(new.parent, "models", new.id or str(uid))
        async with self._database.transaction() as connection:
            await store.forget_failed(connection, name)
            known = await claim(connection, key, name)
            if known is not None:
                return await self._get(connection, known)
            # The checkpoint first, then what it lies over.
            model = await store.insert(connection, uid, name, new, [layer.name for layer in reversed(layers)])
            spec = {"source": new.source, "base_under": [asdict(layer) for layer in layers]}
            await self._jobs.create(connection, IMPORT, name, spec)
            await self._hold_source(connection, name, new.source, layers)
            return model

    async def get_with_files(self, name: str) -> tuple[Model, tuple[ArtifactFile, ...]]:
        """The model and its files; none while it is not READY."""
        names.parse(names.MODEL, name)
        async with self._database.transaction() as connection:
            model = await self._get(connection, name)
        if model.state is not ModelState.READY:
            return model, ()
        return model, (await self._artifacts.manifest(model.manifest_sha256)).files

    async def download(self, name: str, path: str, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """One file from `offset` on, as (offset, chunk). Raises DataLoss at the end when its bytes have changed; from
        the middle on only the length is looked at: the reader knows the hash."""
        model, _ = await self.get_with_files(name)
        if model.state is not ModelState.READY:
            message = f"{name} is {model.state}; only a READY model has files"
            raise FailedPrecondition("MODEL_NOT_READY", message, name=name)
        manifest = await self._artifacts.manifest(model.manifest_sha256)
        try:
            async for chunk in self._artifacts.stream_file(manifest.file(path), offset):
                yield chunk
        except DataLoss as error:
            raise await self._corruption.of_base(name, model.manifest_sha256, error) from error

    async def list(self, parent: str, page: PageRequest) -> Page[Model]:
        names.parse(names.PROJECT, parent, "parent")
        async with self._database.transaction() as connection:
            return page.page(await store.list_(connection, parent, page), lambda model: (str(model.uid),))

    async def delete(self, name: str, *, force: bool = False) -> None:
        """Raises FailedPrecondition while it is being imported, and unless forced while something uses it: a job that
        has not ended, a checkpoint that is an adapter over it. Bytes that these need stay until they are gone, too.
        """
        names.parse(names.MODEL, name)
        async with self._database.transaction() as connection:
            # First, so that nobody comes to use it between the look at its users and its end.
            await references.lock(connection, exclusive=True)
            await store.lock(connection, name)
            model = await self._get(connection, name)
            if model.state is ModelState.IMPORTING:
                raise FailedPrecondition("MODEL_IMPORTING", f"{name} is being imported; wait until it ends", name=name)
            if not force:
                check_unused(name, "MODEL_IN_USE", await references.users(connection, name))
            await store.delete(connection, name)
            await references.drop(connection, name)

    async def _hold_source(
        self, connection: Connection, name: str, source: dict[str, Any], layers: tuple[Layer, ...]
    ) -> None:
        """Hold what the import reads until it has ended. Raises InvalidArgument where it was let go meanwhile."""
        await references.lock(connection)
        if layers:
            if await checkpoints.hold(connection, {layers[-1].name: layers[-1].manifest_sha256}):
                raise InvalidArgument.of("model.source.checkpoint", f"{layers[-1].name} was let go a moment ago")
            await hold_layers(connection, name, layers)
        elif tokenizer := source.get("init", {}).get("tokenizer_model"):
            model = await store.get(connection, tokenizer)
            if model is None or model.state is not ModelState.READY:
                raise InvalidArgument.of("model.source.init.tokenizer_model", f"{tokenizer} was deleted a moment ago")
            await hold_layers(connection, name, (Layer(tokenizer, model.manifest_sha256),))

    async def _get(self, connection: Connection, name: str) -> Model:
        model = await store.get(connection, name)
        if model is None:
            raise NotFound("MODEL_NOT_FOUND", f"there is no {name}", name=name)
        return model

    async def _check(self, new: NewModel, key: RequestKey) -> list[Violation]:
        found = names.check_new_id(new.id, "model_id") + names.check_request_id(key.id)
        if names.match(names.PROJECT, new.parent) is None:
            found.append(Violation("parent", f"must be of the form {names.PROJECT}"))
        found += check_labels(new.labels, "model.labels")
        return found + [v.under("model.source") for v in await self._check_source(new.source)]

    async def _check_source(self, source: dict[str, Any]) -> list[Violation]:
        if "hub" in source:
            right = _HUB.fullmatch(source["hub"]) and ".." not in source["hub"]
            return [] if right else [Violation("hub", "must be hf:organisation/name or hf:organisation/name@revision")]
        if "path" in source:
            return import_paths.check(source["path"], self._roots)
        if "init" in source:
            return await self._check_init(source["init"])
        if "checkpoint" in source:
            return []  # looked at by `_layers`
        return [Violation("", "must be one of hub, path, init and checkpoint")]

    async def _layers(self, source: dict[str, Any], violations: list[Violation]) -> tuple[Layer, ...]:
        """What makes the weights of a checkpoint, from the full ones up; none of another source."""
        if "checkpoint" not in source:
            return ()
        found = await find_or_report(self._checkpoint(source["checkpoint"]), "model.source.checkpoint", violations)
        return found.layers if found is not None else ()

    async def _check_init(self, init: dict[str, Any]) -> list[Violation]:
        found = []
        if not isinstance(init["config"].get("model_type"), str):
            found.append(Violation("init.config.model_type", "must be set, such as llama"))
        if "characters" in init:
            alphabet = init["characters"]
            if not alphabet or len(set(alphabet)) != len(alphabet) or len(alphabet) > 10_000:
                found.append(Violation("init.characters.alphabet", "must be 1 to 10,000 characters, each once"))
        elif "tokenizer_model" in init:
            found += await self._check_tokenizer_model(init["tokenizer_model"])
        else:
            found.append(Violation("init", "must have a tokenizer: characters or tokenizer_model"))
        return found

    async def _check_tokenizer_model(self, name: str) -> list[Violation]:
        async with self._database.transaction() as connection:
            model = await store.get(connection, name)
        if model is None or model.state is not ModelState.READY:
            return [Violation("init.tokenizer_model", f"must be a model that is READY (got {name[:120]!r})")]
        return []


async def ended(connection: Connection, job: Job) -> None:
    """Write a failed import into its model; success is written with the model's facts."""
    if job.state in (State.FAILED, State.CANCELLED):
        await store.fail(connection, job.name, job.error or {"code": "CANCELLED", "message": "cancelled"})
