"""Weights on this host, for those who load them: out of the artifact store, an adapter merged into what it lies over.

What was merged is kept in the cache beside what was fetched, in a folder whose name is the hash of its manifest, under
a key made of the contents that it was merged from. A copy that has changed since is merged anew.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import uuid
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from services.mesh.artifacts import Manifest
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.errors import DataLoss, FailedPrecondition, NotFound
from services.mesh.jobs.worker import Retry
from services.models.folder import UnusableModelError, check_stored
from services.models.process import WeightsProcess
from services.trainer.checkpoints.corruption import Corruption
from services.trainer.entities import Layer

T = TypeVar("T")

# Of a merge whose process dies; most often for want of memory, and then every time.
_MERGE_ATTEMPTS = 3


class WeightsCache:
    """`folder` is the cache of this host."""

    def __init__(
        self, artifacts: CollectingStore, corruption: Corruption, process: WeightsProcess, folder: Path
    ) -> None:
        self._artifacts = artifacts
        self._corruption = corruption
        self._process = process
        self._folder = folder
        # A merge takes as much memory as the model: one at a time.
        self._merging = asyncio.Lock()

    async def materialize(self, layers: Sequence[Layer]) -> Path:
        """The folder of full weights, or of those that the layers come to. Raises FailedPrecondition where bytes are
        gone or no longer are what was stored, where a folder names files outside it, and where an adapter cannot be
        merged."""
        if len(layers) == 1:
            return await self._fetch(layers[0])
        folder = self._folder / "merged" / merged_key(layers)
        async with self._merging:
            found = await asyncio.to_thread(_whole, folder)
            if found is None:
                made = folder / f"new-{uuid.uuid4()}"
                facts = await self.merge(layers, made)
                found = await asyncio.to_thread(_name, made, facts["manifest_sha256"])
        return found

    async def merge(self, layers: Sequence[Layer], target: Path) -> dict[str, Any]:
        """Write what the layers come to as a new folder; its facts. Raises as `bring`, and OSError on a full disk."""
        base, *adapters = [await self._fetch(layer) for layer in layers]
        target.parent.mkdir(parents=True, exist_ok=True)
        arguments = ["merge", str(target), "--base", str(base), "--base-sha256", layers[0].manifest_sha256]
        arguments += [word for adapter in adapters for word in ("--adapter", str(adapter))]
        died = ""
        for _ in range(_MERGE_ATTEMPTS):
            try:
                return await self._process.ask(*arguments)
            except FailedPrecondition as error:
                message = f"{layers[-1].name} cannot be merged into {layers[0].name}: {error.message}"
                raise FailedPrecondition(error.reason, message, name=layers[-1].name) from error
            except Retry as error:
                died = str(error)
            finally:
                # What a process leaves that is killed.
                for partial in target.parent.glob(f".{target.name}.*"):
                    shutil.rmtree(partial, ignore_errors=True)
        message = f"{layers[-1].name} was not merged into {layers[0].name}: {died}, {_MERGE_ATTEMPTS} times"
        raise FailedPrecondition("MERGE_FAILED", f"{message}\nWhat to do: read the worker's log; give it more memory")

    async def _fetch(self, layer: Layer) -> Path:
        """As it is stored."""
        try:
            folder = await self._artifacts.fetch(layer.manifest_sha256, self._folder / "models")
            # Once more, for what came in when less was looked at.
            await asyncio.to_thread(check_stored, folder)
        except (NotFound, DataLoss) as error:
            raise await self._corruption.of_base(layer.name, layer.manifest_sha256, error) from error
        except UnusableModelError as error:
            message = f"{layer.name} cannot be loaded: {error}\nWhat to do: mend its folder and import that"
            raise FailedPrecondition("UNUSABLE_MODEL", message, name=layer.name) from error
        return folder


async def cancel_on(cancelled: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """What `work` comes to; None where `cancelled` comes first, and the work has been stopped."""
    working, waiting = asyncio.ensure_future(work), asyncio.ensure_future(cancelled.wait())
    try:
        await asyncio.wait({working, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return await working if working.done() else None
    finally:
        for task in (working, waiting):
            task.cancel()
        await asyncio.gather(working, waiting, return_exceptions=True)


def merged_key(layers: Sequence[Layer]) -> str:
    """Of the contents alone: the same weights under other names are the same."""
    return hashlib.sha256("\n".join(layer.manifest_sha256 for layer in layers).encode()).hexdigest()


def _whole(folder: Path) -> Path | None:
    """The copy that has every byte as it was merged; others go."""
    for found in folder.glob("[0-9a-f]*"):
        if Manifest.of_folder(found).sha256 == found.name:
            return found
        shutil.rmtree(found, ignore_errors=True)
    return None


def _name(made: Path, manifest_sha256: str) -> Path:
    """The same folder under its lasting name; another worker of this host may have made it meanwhile."""
    target = made.with_name(manifest_sha256)
    try:
        made.rename(target)
    except OSError:
        shutil.rmtree(made, ignore_errors=True)
        if not target.is_dir():
            raise
    return target
