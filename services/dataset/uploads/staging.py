"""Files while they arrive: one staging file per upload, appended to by one writer at a time.

What has arrived is what the file holds, so nothing has to be written down beside it and a killed service loses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from services.mesh.errors import NO_ROOM, Aborted, ResourceExhausted

T = TypeVar("T")

# How much may lie in the page cache only; a power cut costs at most this.
SYNC_BYTES = 64 * 1024 * 1024
# A client that comes back at once may meet its own broken call, which is still writing its last chunk.
_LOCK_SECONDS = 1.0
_LOCK_POLL_SECONDS = 0.02
# The notice after which files may be there that nobody needs any more.
SWEEP_TOPIC = "sweep"
_FILE, _SCRATCH = ".part", ".scratch"


class Staging:
    """The folder of staging files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def path(self, uid: UUID) -> Path:
        return self._folder / f"{uid}{_FILE}"

    def size(self, uid: UUID) -> int:
        """Bytes that have arrived; 0 while there is no file."""
        try:
            return self.path(uid).stat().st_size
        except FileNotFoundError:
            return 0

    def free_bytes(self) -> int:
        return shutil.disk_usage(self._folder).free

    def writer(self, uid: UUID) -> Writer:
        return Writer(self.path(uid))

    def sync(self, uid: UUID) -> None:
        """Make what has arrived safe; a service that was killed while writing has not."""
        try:
            descriptor = os.open(self.path(uid), os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def scratch(self, uid: UUID) -> Iterator[Path]:
        """An empty folder for whoever reads the file. One that a killed reader left is emptied first."""
        folder = self._folder / f"{uid}{_SCRATCH}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def remove(self, uid: UUID) -> None:
        self.path(uid).unlink(missing_ok=True)
        shutil.rmtree(self._folder / f"{uid}{_SCRATCH}", ignore_errors=True)

    def uids(self) -> set[UUID]:
        """The uploads that something lies here of."""
        found = set()
        for path in self._folder.iterdir():
            with contextlib.suppress(ValueError):  # the name is not one of ours
                if path.suffix in (_FILE, _SCRATCH):
                    found.add(UUID(path.stem))
        return found


class Writer:
    """The right to append to one staging file. Entering raises Aborted while another writer holds it.

    All its work is done in order on one thread of its own: a call that is broken off may leave at any moment, and the
    file is then closed after the write that was under way, not under it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="staging")
        self._descriptor = -1
        self._unsynced_bytes = 0
        # Bytes in the file.
        self.size = 0

    async def __aenter__(self) -> Writer:
        try:
            await self._run(self._open)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            # Shielded: cancelling what still waits for the thread would take it off, and the lock would stay.
            await asyncio.shield(self._run(self._close))
        finally:
            self._thread.shutdown(wait=False)

    def append(self, chunk: bytes) -> asyncio.Future[bool]:
        """Start writing; the future says whether everything up to here is safe on disk. Raises ResourceExhausted."""
        return self._run(lambda: self._append(chunk))

    def _run(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> None:
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        deadline = time.monotonic() + _LOCK_SECONDS
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Aborted("UPLOAD_BUSY", "another call is writing this upload; read it again, then go on")
            time.sleep(_LOCK_POLL_SECONDS)
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def _append(self, chunk: bytes) -> bool:
        view = memoryview(chunk)
        while view:
            try:
                written = os.write(self._descriptor, view)
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise ResourceExhausted(
                    "DISK_FULL",
                    f"the disk of uploads is full; {self.size} bytes are kept: free some space, then go on there",
                    received_bytes=self.size,
                ) from None
            view = view[written:]
            self.size += written
            self._unsynced_bytes += written
        if self._unsynced_bytes >= SYNC_BYTES:
            self._sync()
        return self._unsynced_bytes == 0

    def _sync(self) -> None:
        os.fdatasync(self._descriptor)
        self._unsynced_bytes = 0

    def _close(self) -> None:
        if self._descriptor < 0:
            return
        try:
            self._sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = -1


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
