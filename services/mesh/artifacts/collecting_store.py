"""An artifact store from which blobs go again, and which looks at what it has before it is used.

Two manifests may name one blob. References (references.py) say which blobs are needed; what is here only
finds what is there, and removes what it is told to.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from pathlib import Path

from services.mesh.artifacts.store import CHUNK_BYTES, ArtifactFile, ArtifactStore, Manifest
from services.mesh.errors import DataLoss, NotFound, OutOfRange, Unavailable

_BLOB = re.compile(r".*/([0-9a-f]{2})/(\1[0-9a-f]{62})")


class CollectingStore(ArtifactStore):
    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url

    async def fetch(self, manifest_sha256: str, cache: Path) -> Path:
        """As above; a copy in the cache that has changed since it was made is made again."""
        target = cache / manifest_sha256
        if await asyncio.to_thread(_has_changed, target, manifest_sha256):
            await asyncio.to_thread(_set_aside, target)
        return await super().fetch(manifest_sha256, cache)

    async def missing(self, manifest: Manifest) -> list[ArtifactFile]:
        """Files whose blobs are not there or of another size: a look at each, without reading it."""
        return await asyncio.to_thread(
            lambda: [file for file in manifest.files if not self._has(file.sha256, file.size_bytes)]
        )

    async def absent(self, sizes: Mapping[str, int]) -> list[str]:
        """Blobs, by hash with their size, that are not there or of another size."""
        return await asyncio.to_thread(lambda: [blob for blob, size in sizes.items() if not self._has(blob, size)])

    async def whole_manifest(self, manifest_sha256: str) -> Manifest:
        """The manifest of an artifact all of whose blobs are there. Raises DataLoss where something is missing."""
        try:
            manifest = await self.manifest(manifest_sha256)
        except NotFound as error:
            raise DataLoss("CORRUPT_ARTIFACT", "its manifest is gone", sha256=manifest_sha256) from error
        if missing := await self.missing(manifest):
            message = f"stored bytes of {missing[0].path} are gone or cut short"
            raise DataLoss("CORRUPT_ARTIFACT", message, sha256=missing[0].sha256)
        return manifest

    async def stream_file(self, file: ArtifactFile, offset: int) -> AsyncIterator[tuple[int, bytes]]:
        """One file of an artifact from `offset` on, as (offset, chunk).

        Raises OutOfRange, NotFound, and DataLoss at the end when its bytes have changed; from the middle on only the
        length is looked at.
        """
        if not 0 <= offset <= file.size_bytes:
            message = f"offset_bytes must be from 0 to {file.size_bytes}"
            raise OutOfRange("OFFSET_OUT_OF_RANGE", message, path=file.path)
        digest = hashlib.sha256() if offset == 0 else None
        async for chunk in self.stream_blob(file.sha256, offset):
            yield offset, chunk
            offset += len(chunk)
            if digest is not None:
                digest.update(chunk)
        if offset != file.size_bytes or (digest is not None and digest.hexdigest() != file.sha256):
            message = f"stored bytes of {file.path} no longer match their hash"
            raise DataLoss("CORRUPT_ARTIFACT", message, path=file.path)

    async def remove(self, blobs: Iterable[str]) -> None:
        """Blobs that nothing names any more. One that is gone already is no error; an open reader keeps its own.

        A caller that is cancelled leaves when the removal has ended: nobody removes anything behind its back.
        """
        removing = asyncio.ensure_future(asyncio.to_thread(self._remove, list(blobs)))
        try:
            await asyncio.shield(removing)
        except asyncio.CancelledError:
            await asyncio.wait({removing})
            raise

    async def blobs(self) -> list[str]:
        """Hashes of all that lies in the store."""
        return await asyncio.to_thread(self._blobs)

    async def modified(self, sha256: str) -> datetime:
        """When a blob was stored. Raises FileNotFoundError."""
        return await asyncio.to_thread(self._filesystem.modified, self._key(sha256))

    async def read_note(self, name: str) -> str | None:
        """A small text beside the blobs; None where there is none."""

        def read() -> str | None:
            try:
                return self._filesystem.cat_file(f"{self._root}/{name}").decode()
            except FileNotFoundError:
                return None

        return await asyncio.to_thread(read)

    async def write_note(self, name: str, text: str) -> None:
        """Raises ResourceExhausted."""

        def write() -> None:
            with self._writing(f"{self._root}/{name}") as file:
                file.write(text.encode())

        await asyncio.to_thread(write)

    async def discard_corrupt(self, manifest_sha256: str) -> list[str]:
        """Remove those blobs of an artifact that no longer have their hash; the paths that they stood for.

        Left in place they would be taken for the right ones when the same content is stored again. Raises Unavailable
        where there is no store: what is not mounted is not corrupt.
        """
        if not await asyncio.to_thread(self._filesystem.exists, self._root):
            message = f"there is no artifact store at {self._root}; mount or restore it, nothing is lost by waiting"
            raise Unavailable("ARTIFACT_STORE_AWAY", message)
        with contextlib.suppress(NotFound, DataLoss):
            manifest = await self.manifest(manifest_sha256)
            wrong = await asyncio.to_thread(
                lambda: [file for file in manifest.files if not self._is_right(file.sha256, file.size_bytes)]
            )
            await self.remove(file.sha256 for file in wrong)
            return [file.path for file in wrong]
        await self.remove([manifest_sha256])
        return []

    def _blobs(self) -> list[str]:
        try:
            found = map(_BLOB.fullmatch, self._filesystem.find(self._root))
        except FileNotFoundError:
            return []
        return [match[2] for match in found if match is not None]

    def _is_right(self, sha256: str, size_bytes: int) -> bool:
        if not self._has(sha256, size_bytes):
            return False
        digest = hashlib.sha256()
        with self._open(sha256) as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest() == sha256

    def _remove(self, blobs: list[str]) -> None:
        for sha256 in blobs:
            with contextlib.suppress(FileNotFoundError):
                self._filesystem.rm(self._key(sha256))


def _has_changed(folder: Path, manifest_sha256: str) -> bool:
    return folder.exists() and Manifest.of_folder(folder).sha256 != manifest_sha256


def _set_aside(folder: Path) -> None:
    """Out of the way at once, so that nobody finds half of it, and then gone."""
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4()}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)
