"""References and the collector: two services share blobs, and whatever dies in between, what is needed stays."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import services
from services.mesh import catalog
from services.mesh.artifacts import gc, references
from services.mesh.artifacts.collecting_store import CollectingStore
from services.mesh.artifacts.gc import Collector
from services.mesh.artifacts.marker import claim
from services.mesh.db.postgres import Database
from services.mesh.errors import FailedPrecondition, Unavailable

SCHEMAS = ("dataset", "trainer")
BLOBS = [f"blob {n}".encode() for n in range(12)]
STEPS = 120


class Killed(Exception):
    """The process is gone at this point."""


class Missing(Exception):
    """Bytes are not there for who comes to need them."""


@dataclass
class World:
    """Two services with a table each beside the references, and what they and their jobs must find."""

    databases: list[Database]
    store: CollectingStore
    collectors: list[Collector]
    chance: random.Random
    # What has committed: holder → what it needs, as (resource, content).
    held: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    blobs: dict[str, set[str]] = field(default_factory=dict)
    kills: int = 0

    def anyone(self) -> Database:
        return self.chance.choice(self.databases)


@pytest.fixture
async def databases(postgres_url: str) -> AsyncIterator[list[Database]]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        for schema in SCHEMAS:
            database = Database(postgres_url, schema)
            await database.migrate("services.mesh")
            found.append(await stack.enter_async_context(database))
        yield found


@pytest.fixture
async def store(databases: list[Database], tmp_path: Path) -> CollectingStore:
    store = CollectingStore(f"file://{tmp_path}/store")
    await claim(databases[0], store)
    return store


async def add(world: World, holder: str) -> None:
    """Store some blobs and hold them: what an intake, an import and a validation do."""
    texts = world.chance.sample(BLOBS, world.chance.randint(1, 4))
    shas = [await world.store.put_blob(text) for text in texts]
    await pause(world)
    content = await world.store.put_blob("".join(shas).encode())
    async with world.anyone().transaction() as connection:
        await references.lock(connection)
        await pause(world)
        sizes = {sha: len(text) for sha, text in zip(shas, texts, strict=True)} | {content: len("".join(shas))}
        if await world.store.absent(sizes):
            raise Missing
        await references.add_content(connection, holder, content, shas)
        await pause(world)
    world.blobs[content] = {*shas, content}
    world.held[holder] = {("", content)}


async def use(world: World, job: str) -> None:
    """Create a job from what somebody holds."""
    owners = [holder for holder, held in world.held.items() if any(not resource for resource, _ in held)]
    if not owners:
        return
    owner = world.chance.choice(owners)
    [content] = [content for resource, content in world.held[owner] if not resource]
    async with world.anyone().transaction() as connection:
        await references.lock(connection)
        if not await references.is_held(connection, content):
            raise Missing
        await pause(world)
        await references.add(connection, job, content, owner)
        await pause(world)
    world.held[job] = {(owner, content)}


async def let_go(world: World, holder: str) -> None:
    """Prune or delete what nobody uses; end a job."""
    async with world.anyone().transaction() as connection:
        await references.lock(connection, exclusive=True)
        if await references.users(connection, holder):
            return
        await pause(world)
        await references.drop_below(connection, holder)
        await pause(world)
    world.held.pop(holder, None)


async def pause(world: World) -> None:
    """A moment in which others go on, or the process dies."""
    await asyncio.sleep(0)
    if world.chance.random() < 0.04:
        world.kills += 1
        raise Killed


async def drop_a_connection(world: World) -> None:
    """As when the server ends one of them: whatever transaction it holds is rolled back."""
    async with world.databases[0].transaction() as connection:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
            " AND datname = current_database() AND query NOT LIKE 'LISTEN%' ORDER BY random() LIMIT 1"
        )
    world.kills += 1


async def act(world: World, number: int) -> None:
    what = world.chance.random()
    holder = f"projects/p/things/t{number}"
    if what < 0.35:
        await add(world, holder)
    elif what < 0.6:
        await use(world, f"projects/p/jobs/j{number}")
    elif what < 0.85 and world.held:
        await let_go(world, world.chance.choice(sorted(world.held)))
    elif what < 0.95:
        await world.chance.choice(world.collectors).collect()
    elif what < 0.97:
        await world.chance.choice(world.collectors).sweep()
    else:
        await drop_a_connection(world)


async def stored(world: World) -> set[str]:
    return set(await world.store.blobs())


async def needed(world: World) -> set[str]:
    """What the references that have committed reach."""
    contents = {content for held in world.held.values() for _, content in held}
    return set().union(*(world.blobs[content] for content in contents))


async def recorded(database: Database) -> dict[str, set[tuple[str, str]]]:
    found: dict[str, set[tuple[str, str]]] = {}
    async with database.transaction() as connection:
        cursor = await connection.execute("SELECT holder, resource, sha256 FROM artifacts.blob_references")
        async for holder, resource, sha256 in cursor:
            found.setdefault(holder, set()).add((resource, sha256))
    return found


@pytest.mark.parametrize("seed", range(8))
async def test_nothing_needed_is_ever_gone_and_nothing_else_stays(
    databases: list[Database], store: CollectingStore, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three at a time, with processes that die and connections that drop at any step, removals included."""
    chance = random.Random(seed)
    world = World(databases, store, [Collector(one, store, 0) for one in databases], chance)
    for owner, name in ((gc, "_unreached"), (gc, "_forget"), (CollectingStore, "remove")):
        monkeypatch.setattr(owner, name, _killable(world, getattr(owner, name)))
    for number in range(0, STEPS, 3):
        acts = (act(world, number + n) for n in range(3))
        for outcome in await asyncio.gather(*acts, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, Killed | Missing | Unavailable):
                raise outcome
        # A commit whose answer was lost has happened.
        world.held = await recorded(databases[0])
        await _learn_contents(world)
        assert await needed(world) <= await stored(world)
    monkeypatch.undo()
    assert world.kills > 5 and world.held
    await world.collectors[0].collect()
    await world.collectors[1].sweep()
    assert await stored(world) == await needed(world)
    for holder in sorted(world.held, key=lambda name: "/things/" in name):
        async with databases[1].transaction() as connection:
            await references.drop(connection, holder)
    await world.collectors[1].collect()
    assert await stored(world) == set()


async def _learn_contents(world: World) -> None:
    async with world.databases[0].transaction() as connection:
        cursor = await connection.execute("SELECT content, blob FROM artifacts.content_blobs")
        async for content, blob in cursor:
            world.blobs.setdefault(content, {content}).add(blob)


def _killable(world: World, function: Any) -> Any:
    async def call(*arguments: Any) -> Any:
        await pause(world)
        found = await function(*arguments)
        await pause(world)
        return found

    return call


async def test_who_uses_a_resource_or_what_is_below_it(databases: list[Database]) -> None:
    async with databases[0].transaction() as connection:
        for holder, resource in (
            ("p/jobs/a", "p/datasets/d/versions/1"),
            ("p/jobs/b", "p/datasets/d"),
            ("p/jobs/c", "p/datasets/dd/versions/1"),
            ("p/jobs/e", "p/datasets/d-1"),
            ("p/datasets/d/versions/1", "p/datasets/d/versions/0"),
            ("p/datasets/d/versions/1", ""),
        ):
            await references.add(connection, holder, "a" * 64, resource)
        assert await references.users(connection, "p/datasets/d") == ["p/jobs/a", "p/jobs/b"]
        assert await references.users(connection, "p/datasets/d/versions/1") == ["p/jobs/a"]
        assert await references.used(connection, "p/datasets/d") == {
            "p/datasets/d",
            "p/datasets/d/versions/0",
            "p/datasets/d/versions/1",
        }
        await references.drop_inputs(connection, "p/datasets/d/versions/1")
        assert await references.is_held(connection, "a" * 64)
        await references.drop_below(connection, "p/datasets/d")
        await references.drop_below(connection, "p/jobs")
        assert not await references.is_held(connection, "a" * 64)


async def test_a_blob_without_a_reference_is_left_to_its_writer_for_a_while(
    databases: list[Database], store: CollectingStore
) -> None:
    blob = await store.put_blob(b"of somebody who is not done")
    assert await Collector(databases[0], store, 3600).sweep() == 0
    assert await Collector(databases[0], store, 0).sweep() == 1
    assert await store.blobs() == [] and await store.absent({blob: 27}) == [blob]


async def test_nothing_goes_while_a_service_has_not_moved_its_references(
    databases: list[Database], store: CollectingStore, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It has run here with earlier code: nobody knows what it needs."""
    await store.put_blob(b"of the trainer, perhaps")
    async with databases[0].transaction() as connection:
        await connection.execute("DELETE FROM artifacts.services WHERE schema = 'trainer'")
        # Of another application in the same database, which has nothing to tell.
        await connection.execute("CREATE SCHEMA shop")
        await connection.execute("CREATE TABLE shop.migrations (id integer)")
    collector = Collector(databases[0], store, 0)
    assert await collector.sweep() == 0 and "services of schema trainer have started" in caplog.text
    await Database(postgres_url, "trainer").migrate("services.mesh")
    assert await collector.sweep() == 1


def test_the_schemas_of_all_services_are_looked_for() -> None:
    apps = Path(services.__path__[0]).glob("*/app.py")
    schemas = {name for app in apps for name in re.findall(r'JobService\("(\w+)"', app.read_text())}
    assert schemas == set(catalog.SERVICES)


async def test_a_blob_that_cannot_be_removed_keeps_no_other(
    databases: list[Database],
    store: CollectingStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is named in the log, and the next sweep takes it."""
    stuck, other = await store.put_blob(b"stuck"), await store.put_blob(b"other")
    remove = store.remove

    async def refuse_one(blobs: list[str]) -> None:
        if stuck in blobs:
            raise PermissionError(13, "Permission denied")
        await remove(blobs)

    monkeypatch.setattr(store, "remove", refuse_one)
    async with databases[0].transaction() as connection:
        await references.release(connection, [stuck, other])
    collector = Collector(databases[0], store, 0)
    assert await collector.collect() == 1 and f"blob {stuck} cannot be removed" in caplog.text
    assert await store.absent({other: 5}) == [other]
    assert await collector.sweep() == 0 and await store.blobs() == [stuck]
    monkeypatch.undo()
    assert await collector.sweep() == 1


async def test_nothing_goes_while_a_manifest_of_before_cannot_be_read(
    databases: list[Database], store: CollectingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It may name the very blobs that are to go."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    manifest = await store.put_folder(folder)
    path = tmp_path / "store" / manifest.sha256[:2] / manifest.sha256
    text = path.read_bytes()
    path.write_bytes(text[:-1])
    async with databases[0].transaction() as connection:
        await references.add(connection, "p/models/old", manifest.sha256)
        await connection.execute("INSERT INTO artifacts.contents VALUES (%s, false)", (manifest.sha256,))
    collector = Collector(databases[1], store, 0)
    assert await collector.sweep() == 0 and "p/models/old cannot be read" in caplog.text
    path.write_bytes(text)
    assert await collector.sweep() == 0
    async with databases[0].transaction() as connection:
        await references.drop(connection, "p/models/old")
    assert await collector.collect() == 2


async def test_a_store_of_another_database_is_refused_and_one_that_is_not_mounted_left_alone(
    databases: list[Database], store: CollectingStore, postgres_server: Any, postgres_url: str, tmp_path: Path
) -> None:
    """Two databases may be set for two services; each would collect what the other needs."""
    await store.put_blob(b"of the first")
    await claim(databases[1], store)
    (tmp_path / "store" / "references").write_text("another")
    with pytest.raises(FailedPrecondition, match="same RLHF_POSTGRES_URL"):
        await claim(databases[1], store)
    collector = Collector(databases[0], store, 0)
    assert await collector.sweep() == 0 and len(await store.blobs()) == 1
    (tmp_path / "store").rename(tmp_path / "away")
    await claim(databases[1], store)
    assert not (tmp_path / "store").exists() and await collector.sweep() == 0
