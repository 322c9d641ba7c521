"""The look at the disk: told at the first look and at each change, with the folder that has the least room."""

from __future__ import annotations

import asyncio
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from services.mesh.artifacts.disk_space import DiskSpace
from services.mesh.settings import Environment, MeshSettings

LOW = 100 << 20


class Disks:
    """Free bytes by folder, in the place of what the system says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **free: int) -> None:
        self.free = free
        monkeypatch.setattr(shutil, "disk_usage", self._usage)

    def _usage(self, folder: Path) -> SimpleNamespace:
        return SimpleNamespace(free=self.free[folder.name])


async def looking(folders: list[Path], changes: asyncio.Queue[bool]) -> asyncio.Task[None]:
    return asyncio.create_task(DiskSpace(folders, LOW, changes.put, look_seconds=0.001).run())


async def test_each_change_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    home, files = tmp_path / "home", tmp_path / "files"
    home.mkdir()
    files.mkdir()
    disks, changes = Disks(monkeypatch, home=LOW, files=LOW), asyncio.Queue[bool]()
    task = await looking([home, files / "not" / "there"], changes)
    assert await asyncio.wait_for(changes.get(), 10) is True
    disks.free["files"] = LOW - 1
    assert await asyncio.wait_for(changes.get(), 10) is False
    assert f"99 MiB free at {files}" in caplog.text
    disks.free["files"] = LOW
    assert await asyncio.wait_for(changes.get(), 10) is True
    assert "over after" in caplog.text
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert changes.empty()
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2


async def test_a_disk_that_cannot_be_looked_at_counts_as_having_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(folder)

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    changes = asyncio.Queue[bool]()
    task = await looking([tmp_path], changes)
    assert await asyncio.wait_for(changes.get(), 10) is True
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(("url", "folder"), [("/a/b", "/a/b"), ("file:///a/b", "/a/b"), ("memory://b", None)])
def test_a_store_on_this_machine_is_watched_however_its_address_is_written(url: str, folder: str | None) -> None:
    settings = {"RLHF_ARTIFACTS_URL": url, "RLHF_POSTGRES_URL": "postgresql://h/d", "RLHF_NATS_URL": "nats://h"}
    found = MeshSettings.read(Environment(settings), "dataset").artifacts_folder
    assert found == (Path(folder) if folder else None)
