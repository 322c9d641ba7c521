"""Bytes that arrive."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Protocol

from rlhf.type.v1.checkpoint_pb2 import ArtifactFile

from services.client import files
from services.client.aio import in_thread
from services.client.files import OnProgress, Partial, Progress


class Piece(Protocol):
    @property
    def offset_bytes(self) -> int: ...
    @property
    def chunk(self) -> bytes: ...


class Artifact(Protocol):
    """A model or a checkpoint, with its files."""

    @property
    def name(self) -> str: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def files(self) -> Sequence[ArtifactFile]: ...


# The replies with a file's bytes, by its path and from where the reader has got to.
Opened = Callable[[str, Callable[[], int]], AsyncGenerator[Piece, None]]


async def fetch_all(found: Artifact, folder: Path, opened: Opened, overwrite: bool, on_progress: OnProgress) -> None:
    """Every file under `folder`, each there when it has its SHA-256. What an earlier try left is gone on with.

    Raises AlreadyExists for other files of these names, DataLoss for bytes that do not have their hash, InvalidArgument
    for a path that leads out of `folder`.
    """
    missing = await in_thread(_missing, found, folder, overwrite)
    done = found.size_bytes - sum(file.size_bytes for file in missing)
    for file in missing:
        partial = await in_thread(Partial, folder / files.PARTIAL_FOLDER / file.sha256, file.size_bytes)

        def on_file_progress(progress: Progress, before: int = done) -> None:
            on_progress(Progress("downloading", before + progress.done, found.size_bytes))

        async with aclosing(opened(file.path, partial.position)) as replies:
            await fetch(replies, partial, file.size_bytes, on_file_progress)
        await in_thread(partial.finish, files.place_in(folder, file.path), file.sha256)
        done += file.size_bytes
    await in_thread(files.remove_if_empty, folder / files.PARTIAL_FOLDER)


def _missing(found: Artifact, folder: Path, overwrite: bool) -> tuple[ArtifactFile, ...]:
    """Every path is checked before anything is written."""
    places = [(file, files.place_in(folder, file.path)) for file in found.files]
    return tuple(file for file, place in places if not files.is_there(place, file.size_bytes, file.sha256, overwrite))


async def fetch(replies: AsyncIterator[Piece], partial: Partial, total: int, on_progress: OnProgress) -> None:
    """Append what is missing. The file is closed afterwards, also by an error. Raises DataLoss for a wrong offset."""
    on_progress(Progress("downloading", partial.offset, total))
    try:
        if partial.offset < total:
            async for reply in replies:
                await in_thread(partial.append, reply.offset_bytes, reply.chunk)
                on_progress(Progress("downloading", partial.offset, total))
    finally:
        partial.close()
