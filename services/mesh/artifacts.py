"""Content-addressed files behind fsspec: a local folder by default, `s3://…` in production.

A blob's key is the SHA-256 of its bytes. An artifact is a folder: a manifest (a blob too) lists path, size and SHA-256
of every file, and the manifest's own hash is the artifact's name. Bytes are hashed on the way in and on the way out.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

from services.mesh.errors import DataLoss, InvalidArgument, NotFound

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class ArtifactFile:
    """`path` is relative with forward slashes, `sha256` lower-case hex."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The files of an artifact, by path."""

    files: tuple[ArtifactFile, ...]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.encode()).hexdigest()

    def encode(self) -> bytes:
        files = [asdict(file) for file in self.files]
        return json.dumps({"files": files}, separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises InvalidArgument when a path would leave its folder."""
        files = tuple(ArtifactFile(**file) for file in json.loads(data)["files"])
        for file in files:
            check_relative_path(file.path)
        return cls(files)

    def file(self, path: str) -> ArtifactFile:
        """Raises NotFound."""
        for file in self.files:
            if file.path == path:
                return file
        known = ", ".join(file.path for file in self.files)
        raise NotFound("FILE_NOT_FOUND", f"there is no file {path!r}; there are {known}", path=path)

    @classmethod
    def of_folder(cls, folder: Path) -> Manifest:
        """Hash every file under `folder`. Links are refused: an artifact holds its bytes."""
        files = []
        for path in sorted(folder.rglob("*")):
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise InvalidArgument.of("path", f"{relative} is a link; an artifact must hold the file itself")
            if path.is_file():
                files.append(ArtifactFile(relative, path.stat().st_size, hash_file(path)))
        return cls(tuple(files))


class ArtifactStore:
    """Blobs and artifacts under one URL. Methods run in threads and leave the event loop free."""

    def __init__(self, url: str) -> None:
        self._filesystem, self._root = fsspec.url_to_fs(url)

    async def put_blob(self, data: bytes) -> str:
        """Store bytes, return their hash. Putting what is there already costs a look."""
        sha256 = hashlib.sha256(data).hexdigest()
        await asyncio.to_thread(self._put_bytes, sha256, data)
        return sha256

    async def put_file(self, path: Path, sha256: str | None = None) -> ArtifactFile:
        """Store one file. Raises DataLoss when its bytes do not have the hash that the caller names."""
        return await asyncio.to_thread(self._put_file, path, path.name, sha256)

    async def put_folder(self, folder: Path) -> Manifest:
        """Store every file under `folder` and their manifest; nothing is named before all of it is there."""
        return await asyncio.to_thread(self._put_folder, folder)

    async def manifest(self, sha256: str) -> Manifest:
        """Raises NotFound, DataLoss."""
        return Manifest.decode(await self.read_blob(sha256))

    async def read_blob(self, sha256: str) -> bytes:
        """All bytes of a blob, verified. Raises NotFound, DataLoss."""
        data = await asyncio.to_thread(self._read, sha256)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _corrupt(sha256)
        return data

    async def stream_blob(self, sha256: str, offset_bytes: int = 0) -> AsyncIterator[bytes]:
        """The bytes from `offset_bytes` on, in chunks of at most 1 MiB. Not verified: the reader knows the hash."""
        file = await asyncio.to_thread(self._open, sha256)
        try:
            await asyncio.to_thread(file.seek, offset_bytes)
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                yield chunk
        finally:
            await asyncio.to_thread(file.close)

    async def fetch(self, manifest_sha256: str, cache: Path) -> Path:
        """The artifact as a folder under `cache`, every file verified; made once. Raises NotFound, DataLoss."""
        target = cache / manifest_sha256
        if not target.exists():
            manifest = await self.manifest(manifest_sha256)
            await asyncio.to_thread(self._fetch, manifest, target)
        return target

    async def verify(self, manifest_sha256: str) -> None:
        """Read every byte of an artifact. Raises NotFound, DataLoss."""
        manifest = await self.manifest(manifest_sha256)
        for file in manifest.files:
            await asyncio.to_thread(self._copy_out, file, None)

    def _key(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"

    def _put_bytes(self, sha256: str, data: bytes) -> None:
        if self._filesystem.exists(self._key(sha256)):
            return
        with self._writing(sha256) as file:
            file.write(data)

    def _put_folder(self, folder: Path) -> Manifest:
        relative_paths = [file.path for file in Manifest.of_folder(folder).files]
        files = tuple(self._put_file(folder / path, path, None) for path in relative_paths)
        manifest = Manifest(files)
        self._put_bytes(manifest.sha256, manifest.encode())
        return manifest

    def _put_file(self, path: Path, name: str, expected: str | None) -> ArtifactFile:
        sha256 = hash_file(path)
        if expected is not None and sha256 != expected:
            raise DataLoss("WRONG_HASH", f"{name} has SHA-256 {sha256}, not {expected}", path=name)
        if not self._filesystem.exists(self._key(sha256)):
            with path.open("rb") as source, self._writing(sha256) as file:
                shutil.copyfileobj(source, file, CHUNK_BYTES)
        return ArtifactFile(name, path.stat().st_size, sha256)

    def _writing(self, sha256: str) -> _AtomicWrite:
        return _AtomicWrite(self._filesystem, self._key(sha256), f"{self._root}/writing/{uuid.uuid4()}", sha256)

    def _read(self, sha256: str) -> bytes:
        with self._open(sha256) as file:
            return file.read()

    def _open(self, sha256: str) -> Any:
        try:
            return self._filesystem.open(self._key(sha256), "rb")
        except FileNotFoundError:
            raise NotFound("ARTIFACT_NOT_FOUND", f"the artifact store has no {sha256}", sha256=sha256) from None

    def _fetch(self, manifest: Manifest, target: Path) -> None:
        partial = target.with_name(f".{target.name}.{uuid.uuid4()}")
        try:
            for file in manifest.files:
                path = partial / check_relative_path(file.path)
                path.parent.mkdir(parents=True, exist_ok=True)
                self._copy_out(file, path)
            try:
                partial.rename(target)
            except OSError:
                if not target.exists():  # somebody else may have fetched it meanwhile
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _copy_out(self, file: ArtifactFile, path: Path | None) -> None:
        digest = hashlib.sha256()
        with self._open(file.sha256) as source, (path or Path(os.devnull)).open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != file.sha256:
            raise _corrupt(file.sha256, file.path)


class _AtomicWrite:
    """A blob that appears under its key whole and with the right hash, or not at all."""

    def __init__(self, filesystem: Any, key: str, temporary: str, sha256: str) -> None:
        self._filesystem, self._key, self._temporary, self._sha256 = filesystem, key, temporary, sha256
        self._digest = hashlib.sha256()

    def __enter__(self) -> _AtomicWrite:
        for path in (self._temporary, self._key):
            self._filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._file = self._filesystem.open(self._temporary, "wb")
        return self

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._file.flush()
            self._file.close()
            if kind is None and self._digest.hexdigest() != self._sha256:
                raise DataLoss("CHANGED_WHILE_READ", "the file changed while it was stored", sha256=self._sha256)
            if kind is None:
                self._filesystem.mv(self._temporary, self._key)
        finally:
            if self._filesystem.exists(self._temporary):
                self._filesystem.rm(self._temporary)


def hash_file(path: Path) -> str:
    """Lower-case hex SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_relative_path(path: str) -> PurePosixPath:
    """A path that stays under the folder it is joined to. Raises InvalidArgument."""
    pure = PurePosixPath(path)
    if not path or pure.is_absolute() or ".." in pure.parts or "\0" in path or "\\" in path:
        raise InvalidArgument.of("path", f"must be a relative path without '..' (got {path[:120]!r})")
    return pure


def _corrupt(sha256: str, path: str = "") -> DataLoss:
    return DataLoss("CORRUPT_ARTIFACT", f"stored bytes of {path or sha256} no longer match their hash", sha256=sha256)
