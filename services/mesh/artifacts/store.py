"""Content-addressed files behind fsspec: a local folder by default, `s3://…` in production.

A blob's key is the SHA-256 of its bytes. An artifact is a folder: a manifest (a blob too) lists path, size and SHA-256
of every file, and the manifest's own hash is the artifact's name. Bytes are hashed on the way in and on the way out.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import msgspec

from services.mesh.errors import NO_ROOM, DataLoss, InvalidArgument, NotFound, ResourceExhausted

CHUNK_BYTES = 1024 * 1024
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
        return msgspec.json.encode({"files": self.files})

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Raises InvalidArgument for anything but a manifest whose files can all lie in one folder."""
        try:
            manifest = msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError as error:
            raise InvalidArgument.of("manifest", f"is not a manifest: {error}") from None
        paths = set()
        for file in manifest.files:
            check_sha256(file.sha256)
            paths.add(check_relative_path(file.path))
        if len(paths) < len(manifest.files) or any(parent in paths for path in paths for parent in path.parents):
            raise InvalidArgument.of("manifest", "has two files in one place")
        return manifest

    def file(self, path: str) -> ArtifactFile:
        """Raises NotFound."""
        for file in self.files:
            if file.path == path:
                return file
        known = ", ".join(file.path for file in self.files)
        raise NotFound("FILE_NOT_FOUND", f"there is no file {path!r}; there are {known}", path=path)

    @classmethod
    def of_folder(cls, folder: Path) -> Manifest:
        """Hash every file under `folder`. Raises InvalidArgument for a link: an artifact holds its bytes."""
        files = (
            ArtifactFile(path, (folder / path).stat().st_size, hash_file(folder / path)) for path in _paths(folder)
        )
        return cls(tuple(files))


class ArtifactStore:
    """Blobs and artifacts under one URL. Methods run in threads and leave the event loop free."""

    def __init__(self, url: str) -> None:
        # Without the cache of listings: other processes store too.
        self._filesystem, self._root = fsspec.url_to_fs(url, use_listings_cache=False)

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
        target = cache / check_sha256(manifest_sha256)
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
        return f"{self._root}/{check_sha256(sha256)[:2]}/{sha256}"

    def _has(self, sha256: str, size_bytes: int) -> bool:
        """Whether the blob is there; one cut short by a crash of the machine is not, and is put again."""
        try:
            return self._filesystem.size(self._key(sha256)) == size_bytes
        except FileNotFoundError:
            return False

    def _put_bytes(self, sha256: str, data: bytes) -> None:
        if not self._has(sha256, len(data)):
            with self._writing(self._key(sha256)) as file:
                file.write(data)

    def _put_folder(self, folder: Path) -> Manifest:
        files = tuple(self._put_file(folder / path, path, None) for path in _paths(folder))
        manifest = Manifest(files)
        self._put_bytes(manifest.sha256, manifest.encode())
        return manifest

    def _put_file(self, path: Path, name: str, expected: str | None) -> ArtifactFile:
        sha256, size_bytes = expected or hash_file(path), path.stat().st_size
        if not self._has(sha256, size_bytes):
            with path.open("rb") as source, self._writing(self._key(sha256)) as file:
                hashing = _Hashing(file)
                shutil.copyfileobj(source, hashing, CHUNK_BYTES)
                _check_hash(name, hashing.digest.hexdigest(), sha256)
        elif expected:
            _check_hash(name, hash_file(path), sha256)
        return ArtifactFile(name, size_bytes, sha256)

    def _writing(self, key: str) -> contextlib.AbstractContextManager[Any]:
        return _atomic_write(self._filesystem, key, f"{self._root}/writing/{uuid.uuid4()}")

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
            partial.mkdir(parents=True)
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
        digest, size_bytes = hashlib.sha256(), 0
        with self._open(file.sha256) as source, (path or Path(os.devnull)).open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                size_bytes += len(chunk)
                target.write(chunk)
        if digest.hexdigest() != file.sha256 or size_bytes != file.size_bytes:
            raise _corrupt(file.sha256, file.path)


class _Hashing:
    """A file that hashes what is written to it."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        return self._file.write(data)


@contextlib.contextmanager
def _atomic_write(filesystem: Any, key: str, temporary: str) -> Iterator[Any]:
    """A blob that appears under its key whole, on disk, or not at all. Raises ResourceExhausted when that is full."""
    for path in (temporary, key):
        filesystem.makedirs(path.rpartition("/")[0], exist_ok=True)
    try:
        with filesystem.open(temporary, "wb") as file:
            yield file
            file.flush()
            with contextlib.suppress(AttributeError, OSError):  # an object store has no descriptor and needs none
                os.fsync(file.fileno())
        filesystem.mv(temporary, key)
    except OSError as error:
        if error.errno in NO_ROOM:
            what = f"the artifact store has no room left for {key}; free some, and what waits for it goes on"
            raise ResourceExhausted("DISK_FULL", what) from error
        raise
    finally:
        if filesystem.exists(temporary):
            filesystem.rm(temporary)


def _paths(folder: Path) -> list[str]:
    """Every file under `folder`, relative and in order. Raises NotFound, and InvalidArgument for a link or a device."""
    if not folder.is_dir():
        raise NotFound("FOLDER_NOT_FOUND", f"there is no folder {folder}", path=folder)
    found = []
    for path in folder.rglob("*"):
        relative = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidArgument.of("path", f"{relative} is a link or a device; an artifact must hold the file itself")
        if path.is_file():
            found.append(str(check_relative_path(relative)))
    return sorted(found)


def _check_hash(name: str, found: str, sha256: str) -> None:
    """Raises DataLoss for a file that has not the hash that was named, or that it had a moment ago."""
    if found != sha256:
        raise DataLoss("WRONG_HASH", f"{name} has SHA-256 {found}, not {sha256}", path=name)


def hash_file(path: Path) -> str:
    """Lower-case hex SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_relative_path(path: str) -> PurePosixPath:
    """A path that stays under the folder it is joined to, in its one spelling. Raises InvalidArgument."""
    pure = PurePosixPath(path)
    is_text = path.encode("utf-8", "replace").decode() == path  # a file name that is not UTF-8 is no text
    if (
        not is_text
        or str(pure) != path
        or not pure.parts
        or pure.is_absolute()
        or ".." in pure.parts
        or set(path) & {"\0", "\\"}
    ):
        raise InvalidArgument.of("path", f"must be a plain relative path without '..' (got {path[:120]!r})")
    return pure


def check_sha256(value: str) -> str:
    """Raises InvalidArgument: what is not a hash could name a file outside the store."""
    if not _SHA256.fullmatch(value):
        raise InvalidArgument.of("sha256", f"must be 64 lower-case hex digits (got {value[:80]!r})")
    return value


def _corrupt(sha256: str, path: str = "") -> DataLoss:
    return DataLoss("CORRUPT_ARTIFACT", f"stored bytes of {path or sha256} no longer match their hash", sha256=sha256)
