"""The artifact store, on disk and on an object store's semantics: whole or absent, and damage is found."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sys
import uuid
from pathlib import Path

import pytest

from services.mesh.artifacts import ArtifactFile, ArtifactStore, Manifest
from services.mesh.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted
from tests.fix_member import until

BIG = os.urandom(3 * 1024 * 1024 + 7)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "store with space"


@pytest.fixture(params=["file", "memory"])
def store(request: pytest.FixtureRequest, root: Path) -> ArtifactStore:
    """`memory` moves by copying and deleting and has no folders, as S3."""
    return ArtifactStore(f"file://{root}" if request.param == "file" else f"memory://{uuid.uuid4()}")


@pytest.fixture
def disk(root: Path) -> ArtifactStore:
    return ArtifactStore(f"file://{root}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    (folder / "weights").mkdir(parents=True)
    (folder / "weights" / "model.safetensors").write_bytes(BIG)
    (folder / "weights" / "copy.safetensors").write_bytes(BIG)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "empty").touch()
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }  # fmt: skip


def found(folder: Path, pattern: str) -> list[Path]:
    return list(folder.glob(pattern))


def blob(root: Path, sha256: str) -> Path:
    return root / sha256[:2] / sha256


def leftovers(store: ArtifactStore) -> list[str]:
    filesystem, root = store._filesystem, store._root
    return filesystem.find(f"{root}/writing") if filesystem.exists(f"{root}/writing") else []


async def test_a_folder_comes_back_as_it_was(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    manifest = await store.put_folder(folder)
    assert manifest == Manifest.of_folder(folder)
    fetched = await store.fetch(manifest.sha256, tmp_path / "cache")
    assert contents(fetched) == contents(folder)
    assert await store.manifest(manifest.sha256) == manifest
    await store.verify(manifest.sha256)
    assert not leftovers(store)
    assert await store.put_folder(folder) == manifest


async def test_fetched_once(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    manifest = await store.put_folder(folder)
    first = await store.fetch(manifest.sha256, tmp_path / "cache")
    store._filesystem.rm(store._root, recursive=True)
    assert await store.fetch(manifest.sha256, tmp_path / "cache") == first


async def test_an_empty_folder(store: ArtifactStore, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    manifest = await store.put_folder(tmp_path / "empty")
    assert contents(await store.fetch(manifest.sha256, tmp_path / "cache")) == {}


@pytest.mark.parametrize("offset", [0, 1, 1024 * 1024, len(BIG) - 1, len(BIG), len(BIG) + 5])
async def test_a_blob_is_streamed_from_any_offset(store: ArtifactStore, offset: int) -> None:
    sha256 = await store.put_blob(BIG)
    chunks = [chunk async for chunk in store.stream_blob(sha256, offset)]
    assert b"".join(chunks) == BIG[offset:]
    assert all(0 < len(chunk) <= 1024 * 1024 for chunk in chunks)


async def test_what_is_missing_is_not_found(store: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    absent = "0" * 64
    manifest = await store.put_folder(folder)
    store._filesystem.rm(store._key(manifest.file("weights/copy.safetensors").sha256))
    for call in (
        store.read_blob(absent), store.manifest(absent), store.fetch(absent, tmp_path), store.verify(absent),
        anext(store.stream_blob(absent)), store.verify(manifest.sha256), store.fetch(manifest.sha256, tmp_path / "c"),
    ):  # fmt: skip
        with pytest.raises(NotFound) as caught:
            await call
        assert caught.value.reason == "ARTIFACT_NOT_FOUND"
    assert not found(tmp_path, "c/*")


@pytest.mark.parametrize("sha256", ["", "../../../etc/passwd", "../" * 20 + "a" * 4])
async def test_a_name_that_is_no_hash_opens_nothing(disk: ArtifactStore, tmp_path: Path, sha256: str) -> None:
    for call in (disk.read_blob(sha256), disk.fetch(sha256, tmp_path), anext(disk.stream_blob(sha256))):
        with pytest.raises(InvalidArgument):
            await call


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize("damage", [flip, truncate, lengthen])
async def test_damage_is_found(disk: ArtifactStore, root: Path, folder: Path, tmp_path: Path, damage) -> None:
    manifest = await disk.put_folder(folder)
    file = manifest.file("weights/model.safetensors")
    damage(blob(root, file.sha256))
    for call in (
        disk.verify(manifest.sha256), disk.fetch(manifest.sha256, tmp_path / "c"), disk.read_blob(file.sha256)
    ):  # fmt: skip
        with pytest.raises(DataLoss):
            await call
    assert not found(tmp_path, "c/*")
    damage(blob(root, manifest.sha256))
    with pytest.raises(DataLoss):
        await disk.manifest(manifest.sha256)


@pytest.mark.parametrize("damage", [truncate, lengthen])
async def test_putting_again_heals_what_a_crash_cut_short(
    disk: ArtifactStore, root: Path, folder: Path, damage
) -> None:
    manifest = await disk.put_folder(folder)
    damage(blob(root, manifest.file("config.json").sha256))
    damage(blob(root, manifest.sha256))
    await disk.put_folder(folder)
    await disk.verify(manifest.sha256)


async def test_a_manifest_that_lies_about_a_size_is_found(disk: ArtifactStore, tmp_path: Path) -> None:
    sha256 = await disk.put_blob(b"four")
    lie = await disk.put_blob(Manifest((ArtifactFile("a", 5, sha256),)).encode())
    with pytest.raises(DataLoss):
        await disk.fetch(lie, tmp_path / "c")


async def test_a_manifest_never_writes_outside_its_folder(disk: ArtifactStore, tmp_path: Path) -> None:
    sha256 = await disk.put_blob(b"owned")
    for path in ("../owned", "/tmp/owned", "a/../../owned"):
        hostile = await disk.put_blob(Manifest((ArtifactFile(path, 5, sha256),)).encode())
        with pytest.raises(InvalidArgument):
            await disk.fetch(hostile, tmp_path / "cache" / "deep")
    assert not found(tmp_path, "**/owned")


async def test_the_named_hash_must_be_the_files(store: ArtifactStore, folder: Path) -> None:
    file = await store.put_file(folder / "config.json")
    assert (file.path, file.size_bytes) == ("config.json", 8)
    with pytest.raises(DataLoss) as caught:
        await store.put_file(folder / "config.json", "0" * 64)
    assert caught.value.reason == "WRONG_HASH"


async def test_a_file_that_changes_while_it_is_stored(
    disk: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.mesh.artifacts.store.hash_file", lambda path: "0" * 64)
    with pytest.raises(DataLoss) as caught:
        await disk.put_file(folder / "config.json")
    assert caught.value.reason == "WRONG_HASH"
    assert not leftovers(disk)
    with pytest.raises(NotFound):
        await disk.read_blob("0" * 64)


async def test_a_full_disk_is_told_and_leaves_nothing(
    disk: ArtifactStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: object, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("services.mesh.artifacts.store._Hashing.write", full)
    with pytest.raises(ResourceExhausted) as caught:
        await disk.put_file(folder / "config.json")
    assert caught.value.reason == "DISK_FULL"
    assert not leftovers(disk)


async def test_many_put_and_fetch_the_same_at_once(disk: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    manifests = await asyncio.gather(*(disk.put_folder(folder) for _ in range(8)))
    (sha256,) = {manifest.sha256 for manifest in manifests}
    folders = await asyncio.gather(*(disk.fetch(sha256, tmp_path / "cache") for _ in range(8)))
    assert len(set(folders)) == 1
    assert contents(folders[0]) == contents(folder)
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [sha256]
    assert not leftovers(disk)


SLOW_PUT = """
import asyncio, sys, time
from pathlib import Path
from services.mesh.artifacts import store as artifacts

write = artifacts._Hashing.write

def slow(self, data):
    Path(sys.argv[3]).touch()
    time.sleep(0.2)
    return write(self, data)

artifacts._Hashing.write = slow
asyncio.run(artifacts.ArtifactStore(sys.argv[1]).put_folder(Path(sys.argv[2])))
"""


async def test_a_put_that_is_killed_shows_nothing(
    disk: ArtifactStore, root: Path, folder: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", SLOW_PUT, f"file://{root}", str(folder), str(begun))
    )
    await until(begun.exists)
    process.kill()
    await process.wait()
    manifest = Manifest.of_folder(folder)
    with pytest.raises(NotFound):
        await disk.manifest(manifest.sha256)
    for path in found(root, "??/*"):
        await disk.read_blob(path.name)  # what is there under its hash is whole
    assert await disk.put_folder(folder) == manifest
    await disk.verify(manifest.sha256)


async def test_the_event_loop_stays_free(disk: ArtifactStore, folder: Path, tmp_path: Path) -> None:
    (folder / "large").write_bytes(BIG * 20)
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            before = asyncio.get_running_loop().time()
            await asyncio.sleep(0)
            longest = max(longest, asyncio.get_running_loop().time() - before)
            await asyncio.sleep(0.005)

    ticking = asyncio.create_task(tick())
    started = asyncio.get_running_loop().time()
    manifest = await disk.put_folder(folder)
    await disk.fetch(manifest.sha256, tmp_path / "cache")
    took = asyncio.get_running_loop().time() - started
    ticking.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await ticking
    assert longest < took / 2
