"""Files from the mesh: resumed where an earlier try broke off, verified, and whole under their name or not there."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cli import output
from services.cli.session import Session
from services.mesh.errors import AlreadyExists, DataLoss, InvalidArgument

if TYPE_CHECKING:
    from rlhf.dataset.v1.dataset_pb2 import DatasetVersion
    from rlhf.type.v1.checkpoint_pb2 import ArtifactFile, Checkpoint

Advance = Callable[[int], None]
# Opens a stream of {offset_bytes, chunk} at an offset.
Open = Callable[[int], Any]


async def checkpoint(session: Session, found: Checkpoint, folder: Path, force: bool) -> None:
    """Every file of a checkpoint under `folder`. Raises DataLoss for bytes that do not have their hash."""
    from services.mesh.artifacts import check_relative_path

    for file in found.files:
        check_relative_path(file.path)
    missing = [file for file in found.files if not await asyncio.to_thread(_is_there, folder, file, force)]
    partial = folder / ".rlhf-partial"
    await asyncio.to_thread(partial.mkdir, parents=True, exist_ok=True)
    with _bar(found.size_bytes, found.size_bytes - sum(file.size_bytes for file in missing)) as advance:
        for file in missing:
            await _checkpoint_file(session, found.name, file, folder, advance)
    with contextlib.suppress(OSError):  # another download may be using it
        partial.rmdir()


async def _checkpoint_file(session: Session, name: str, file: ArtifactFile, folder: Path, advance: Advance) -> None:
    from rlhf.trainer.v1.trainer_service_pb2 import DownloadCheckpointRequest

    def open_at(offset: int) -> Any:
        request = DownloadCheckpointRequest(name=name, path=file.path, offset_bytes=offset)
        return session.trainer.DownloadCheckpoint(request)

    partial = folder / ".rlhf-partial" / file.sha256
    await _fetch(session, open_at, partial, file.size_bytes, advance)
    sha256 = await asyncio.to_thread(_hash, partial)
    if sha256 != file.sha256:
        partial.unlink()
        raise DataLoss("WRONG_HASH", f"{file.path} came with SHA-256 {sha256}, not {file.sha256}: try again")
    target = folder / file.path
    target.parent.mkdir(parents=True, exist_ok=True)
    partial.replace(target)


async def dataset_version(session: Session, version: DatasetVersion, target: Path, force: bool) -> None:
    """The rows of a version as the file `target`. Raises AlreadyExists, DataLoss."""
    from rlhf.dataset.v1.dataset_service_pb2 import DownloadDatasetRequest

    _make_room(target, force)

    def open_at(offset: int) -> Any:
        return session.datasets.DownloadDataset(DownloadDatasetRequest(name=version.name, offset_bytes=offset))

    # Named by content: what is left of another version is never gone on with.
    partial = target.with_name(f".{target.name}.{version.sha256[:16]}.partial")
    with _bar(version.size_bytes, 0) as advance:
        await _fetch(session, open_at, partial, version.size_bytes, advance)
    partial.replace(target)


async def _fetch(session: Session, open_at: Open, partial: Path, size_bytes: int, advance: Advance) -> None:
    """Append to `partial` until it has `size_bytes`. Raises DataLoss where the bytes do not add up."""
    offset = _begun(partial, size_bytes)
    advance(offset)
    with partial.open("ab") as file:
        if offset < size_bytes:
            async with contextlib.aclosing(session.resume(lambda: open_at(offset), output.hint)) as replies:
                async for reply in replies:
                    if reply.offset_bytes != offset:
                        raise DataLoss("WRONG_OFFSET", f"asked for byte {offset}, got byte {reply.offset_bytes}")
                    await asyncio.to_thread(file.write, reply.chunk)
                    offset += len(reply.chunk)
                    advance(len(reply.chunk))
    if offset != size_bytes:
        raise DataLoss("WRONG_SIZE", f"{partial.name} has {offset} bytes, not {size_bytes}: try again")


def _make_room(target: Path, force: bool) -> None:
    """Raises InvalidArgument for a folder, AlreadyExists for a file that may not be replaced."""
    if target.is_dir():
        raise InvalidArgument.of("--to", f"{target} is a folder; name a file")
    if target.exists() and not force:
        raise AlreadyExists("FILE_EXISTS", f"{target} is there already; --force replaces it")
    target.parent.mkdir(parents=True, exist_ok=True)


def _begun(partial: Path, size_bytes: int) -> int:
    """Bytes that an earlier try left; a longer file is none of ours and is begun again."""
    offset = partial.stat().st_size if partial.exists() else 0
    if offset <= size_bytes:
        return offset
    partial.unlink()
    return 0


def _is_there(folder: Path, file: ArtifactFile, force: bool) -> bool:
    """Whether the file lies there already, whole. Raises AlreadyExists for another file of that name."""
    path = folder / file.path
    if not path.exists():
        return False
    if path.is_file() and path.stat().st_size == file.size_bytes and _hash(path) == file.sha256:
        return True
    if force and path.is_file():
        return False
    raise AlreadyExists("FILE_EXISTS", f"{path} is another file; choose another folder, or --force replaces it")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def _bar(total: int, done: int) -> Iterator[Advance]:
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    console = output.messages()
    columns = (BarColumn(bar_width=None), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal, expand=True) as progress:
        task = progress.add_task("", total=total, completed=done)
        yield lambda count: progress.advance(task, count)
