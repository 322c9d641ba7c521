"""Outbox, relay and consumer against real PostgreSQL and NATS: at least once on the wire, once in effect."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import nats.errors
import pytest
from google.protobuf.message import Message
from nats.aio.msg import Msg
from rlhf.event.v1.checkpoint_changed_pb2 import CheckpointChanged
from rlhf.event.v1.dataset_version_created_pb2 import DatasetVersionCreated
from rlhf.event.v1.training_job_changed_pb2 import TrainingJobChanged

from services.mesh import identity
from services.mesh.db.postgres import Connection, Database
from services.mesh.errors import ResourceExhausted
from services.mesh.events.bus import DEAD_STREAM, STREAM
from services.mesh.events.consumer import Consumer
from services.mesh.events.outbox import Bus, EventLog, Relay
from services.mesh.jobs.store import Jobs, State
from services.mesh.telemetry import tracing
from services.supervisor import embedded
from services.supervisor.embedded import process
from tests.fix_member import PROJECT, background, new_job, rows, until
from tests.fix_telemetry import Figure, Spans, hexadecimal

UNPUBLISHED = "SELECT count(*) FROM events WHERE publish_time IS NULL"


@pytest.fixture
async def bus(nats_url: str) -> AsyncIterator[Bus]:
    async with Bus(nats_url, "testing") as bus:
        await connected(bus)
        yield bus


async def connected(bus: Bus) -> None:
    async def answers() -> bool:
        try:
            await bus.stream()
        except (nats.errors.Error, TimeoutError):
            return False
        return True

    await until(answers)


async def is_count(database: Database, query: str, number: int) -> bool:
    return await rows(database, query) == [(number,)]


async def write(database: Database, log: EventLog, id_: str, sequence: int = 1, label: str = "") -> None:
    message = TrainingJobChanged()
    message.training_job.name = f"{PROJECT}/trainingJobs/{id_}"
    message.training_job.algorithm = label
    async with database.transaction() as connection:
        await log.add(connection, message.training_job.name, sequence, message)


async def messages(bus: Bus, stream: str = STREAM) -> list[Msg]:
    """Everything in a stream."""
    context = await bus.stream()
    count = (await context.stream_info(stream)).state.messages
    if not count:
        return []
    subscription = await context.pull_subscribe(">", stream=stream)
    found: list[Msg] = []
    while len(found) < count:
        found += await subscription.fetch(count - len(found), timeout=5)
    await subscription.unsubscribe()
    return found


def relaying(database: Database, log: EventLog, bus: Bus):
    return background(Relay("testing", database, log, bus).run())


async def test_an_event_is_a_cloud_event(database: Database, event_log: EventLog, bus: Bus) -> None:
    identity.become(identity.Principal("user:owner"))
    async with relaying(database, event_log, bus):
        await write(database, event_log, "j", 3, "name 名")
        await until(lambda: is_count(database, UNPUBLISHED, 0))
    (message,) = await messages(bus)
    assert message.subject == "rlhf.event.v1.TrainingJobChanged.default"
    event = json.loads(message.data)
    assert message.headers is not None
    assert message.headers["Nats-Msg-Id"] == event["id"]
    expected = {
        "specversion": "1.0", "source": "/testing", "type": "rlhf.event.v1.TrainingJobChanged",
        "subject": f"{PROJECT}/trainingJobs/j", "sequence": "3", "principal": "user:owner",
        "datacontenttype": "application/json",
        "data": {"trainingJob": {"name": f"{PROJECT}/trainingJobs/j", "algorithm": "name 名"}},
    }  # fmt: skip
    assert expected.items() <= event.items()


async def test_events_of_a_resource_are_published_in_order(database: Database, event_log: EventLog, bus: Bus) -> None:
    """Moves of one job are serialised by its row; several jobs move at once."""
    jobs = Jobs(database, announce_slowly(event_log))

    async def move(id_: str) -> None:
        await new_job(database, jobs, id_)
        lease = await jobs.claim(["work"], "w", 60)
        assert lease is not None
        async with database.transaction() as connection:
            await jobs.move(connection, await jobs.held(connection, lease), State.FAILED)

    async with relaying(database, event_log, bus):
        await asyncio.gather(*(move(f"j{number}") for number in range(10)))
        await until(lambda: is_count(database, UNPUBLISHED, 0))
    order: dict[str, list[int]] = {}
    for message in await messages(bus):
        event = json.loads(message.data)
        order.setdefault(event["subject"], []).append(int(event["sequence"]))
    assert list(order.values()) == [[1, 2, 3]] * 10


def announce_slowly(log: EventLog):
    async def announce(connection: Connection, job, before) -> None:
        await log.add(connection, job.name, job.sequence, TrainingJobChanged())
        await asyncio.sleep(0.01)  # so that transactions overlap and commit in another order than they began

    return announce


async def test_a_rolled_back_event_is_never_published(database: Database, event_log: EventLog, bus: Bus) -> None:
    async with relaying(database, event_log, bus):
        with pytest.raises(ZeroDivisionError):
            async with database.transaction() as connection:
                await event_log.add(connection, f"{PROJECT}/trainingJobs/a", 1, TrainingJobChanged())
                raise ZeroDivisionError
        await write(database, event_log, "b")
        await until(lambda: is_count(database, UNPUBLISHED, 0))
    assert [json.loads(message.data)["subject"] for message in await messages(bus)] == [f"{PROJECT}/trainingJobs/b"]


async def test_an_event_that_nats_cannot_carry_is_refused_where_it_is_written(
    database: Database, event_log: EventLog
) -> None:
    with pytest.raises(ResourceExhausted, match="too big"):
        await write(database, event_log, "j", 1, "x" * 1_000_000)
    assert await is_count(database, "SELECT count(*) FROM events", 0)


async def test_the_biggest_event_passes(database: Database, event_log: EventLog, bus: Bus) -> None:
    async with relaying(database, event_log, bus):
        await write(database, event_log, "j", 1, "名" * 149_900)
        await until(lambda: is_count(database, UNPUBLISHED, 0))


async def test_two_relays_publish_each_event_once(database: Database, event_log: EventLog, bus: Bus) -> None:
    async with relaying(database, event_log, bus), relaying(database, event_log, bus):
        for number in range(50):
            await write(database, event_log, f"j{number % 5}", number)
        await until(lambda: is_count(database, UNPUBLISHED, 0))
    found = [json.loads(message.data) for message in await messages(bus)]
    assert len(found) == len({event["id"] for event in found}) == 50


DYING_RELAY = """
import asyncio, os, sys
from services.mesh.events.outbox import Bus, EventLog, Relay
from services.mesh.db.postgres import Database

async def main():
    postgres_url, schema, nats_url = sys.argv[1:]
    async with Database(postgres_url, schema) as database, Bus(nats_url, "dying") as bus:
        log = EventLog(database)
        async def die(connection, ids):
            os.kill(os.getpid(), 9)
        log.mark_published = die
        await Relay("testing", database, log, bus).run()

asyncio.run(main())
"""


async def test_a_relay_killed_between_publishing_and_marking_makes_no_duplicates(
    database: Database, event_log: EventLog, bus: Bus, nats_url: str, shared_url: str
) -> None:
    for number in range(5):
        await write(database, event_log, f"j{number}")
    dying = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", DYING_RELAY, shared_url, database.schema, nats_url)
    )
    assert await asyncio.wait_for(dying.wait(), 30) == -9
    assert len(await messages(bus)) == 5
    assert await is_count(database, UNPUBLISHED, 5)
    async with relaying(database, event_log, bus):
        await until(lambda: is_count(database, UNPUBLISHED, 0))
    assert len(await messages(bus)) == 5


Effect = Callable[[Connection, Message], Awaitable[None]]


class Poison(Exception):
    def __repr__(self) -> str:  # of several lines, as pydantic's and psycopg's are
        return f"poison: {self.args[0]} 毒 \udcff\r\nInjected: header\n\nbody"


class Ledger:
    """A consumer's effect: writes the event's resource into a table, in the transaction it is given."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.poison: set[str] = set()
        self.tries: list[str] = []

    async def prepare(self) -> Ledger:
        async with self.database.transaction() as connection:
            await connection.execute("CREATE TABLE ledger (resource text)")
        return self

    async def effect(self, connection: Connection, message: Message) -> None:
        assert isinstance(message, TrainingJobChanged)
        name = message.training_job.name
        self.tries.append(name)
        await connection.execute("INSERT INTO ledger VALUES (%s)", (name,))
        if name.rpartition("/")[2] in self.poison:
            raise Poison(name)

    async def entries(self) -> list[str]:
        found = await rows(self.database, "SELECT resource FROM ledger ORDER BY ctid")
        return [name.rpartition("/")[2] for (name,) in found]

    async def has(self, number: int) -> bool:
        return await is_count(self.database, "SELECT count(*) FROM ledger", number)


@pytest.fixture
async def ledger(database: Database) -> Ledger:
    return await Ledger(database).prepare()


def consuming(ledger: Ledger, bus: Bus, name: str = "ledger", **effects: Effect):
    all_effects: dict[type[Message], Effect] = {TrainingJobChanged: ledger.effect}
    if "version" in effects:
        all_effects[DatasetVersionCreated] = effects["version"]
    return background(Consumer(name, ledger.database, bus, all_effects).run())


async def test_each_event_has_its_effect_once_in_order(database, event_log: EventLog, bus: Bus, ledger: Ledger) -> None:
    async with relaying(database, event_log, bus), consuming(ledger, bus):
        for number in range(20):
            await write(database, event_log, f"j{number}")
        await until(lambda: ledger.has(20))
    assert await ledger.entries() == [f"j{number}" for number in range(20)]


async def test_a_second_delivery_has_no_second_effect(database, event_log: EventLog, bus: Bus, ledger: Ledger) -> None:
    async with relaying(database, event_log, bus), consuming(ledger, bus):
        await write(database, event_log, "a")
        await until(lambda: ledger.has(1))
        (message,) = await messages(bus)
        context = await bus.stream()
        await context.publish(message.subject, message.data)  # without the id that JetStream would drop it by
        await write(database, event_log, "b")
        await until(lambda: ledger.has(2))
    assert await ledger.entries() == ["a", "b"]


async def test_two_processes_of_one_consumer_share_the_work(
    database, event_log: EventLog, bus: Bus, ledger: Ledger
) -> None:
    async with relaying(database, event_log, bus), consuming(ledger, bus), consuming(ledger, bus):
        for number in range(20):
            await write(database, event_log, f"j{number}")
        await until(lambda: ledger.has(20))
    assert sorted(ledger.tries) == sorted(set(ledger.tries))


async def test_an_effect_that_fails_five_times_goes_to_the_dead_and_others_go_on(
    database, event_log: EventLog, bus: Bus, ledger: Ledger
) -> None:
    ledger.poison.add("bad")
    async with relaying(database, event_log, bus), consuming(ledger, bus):
        for id_ in ("a", "bad", "b", "c"):
            await write(database, event_log, id_)
        await until(lambda: ledger.has(3), 5)
        await until(lambda: has_dead(bus, 1))
        await write(database, event_log, "d")
        await until(lambda: ledger.has(4))
    assert ledger.tries.count(f"{PROJECT}/trainingJobs/bad") == 5
    (dead,) = await messages(bus, DEAD_STREAM)
    assert dead.subject == "rlhf.dead.ledger"
    assert json.loads(dead.data)["subject"] == f"{PROJECT}/trainingJobs/bad"
    assert dead.headers is not None
    assert dead.headers["Rlhf-Consumer"] == "ledger"
    assert "poison" in dead.headers["Rlhf-Error"]
    assert "Injected" not in dead.headers
    assert await is_count(database, "SELECT count(*) FROM consumed_events", 4)  # it may be published again


async def test_the_trace_of_a_change_goes_with_its_event(
    database, event_log: EventLog, bus: Bus, ledger: Ledger, spans: Spans, figure: Figure
) -> None:
    """Into the effect, whatever becomes of it, and with a dead event to whoever looks at it."""
    ledger.poison.add("bad")
    changed, trace = TrainingJobChanged.DESCRIPTOR.full_name, "0af7651916cd43dd8448eb211c80319c"
    with tracing.span("call", traceparent=f"00-{trace}-b7ad6b7169203331-01"):
        await write(database, event_log, "bad")
    async with relaying(database, event_log, bus), consuming(ledger, bus):
        await until(lambda: has_dead(bus, 1))
    call = hexadecimal(spans.one("call"))[1]
    send = spans.one(f"send {changed}", trace)
    assert hexadecimal(send)[2] == call
    deliveries = [span for span in spans.all(trace) if span.name == f"process {changed}"]
    assert len(deliveries) == 5 and not any(span.status.is_ok for span in deliveries)
    assert {hexadecimal(span)[2] for span in deliveries} == {hexadecimal(send)[1]}
    (dead,) = await messages(bus, DEAD_STREAM)
    assert dead.headers is not None and dead.headers["traceparent"] == f"00-{trace}-{hexadecimal(send)[1]}-01"
    assert figure("rlhf.event.failed_deliveries", rlhf__event__consumer="ledger") == 4
    assert figure("rlhf.event.dead_letters", rlhf__event__consumer="ledger") == 1
    assert figure("messaging.client.sent.messages") == 1
    assert figure("messaging.client.consumed.messages") is None


async def has_dead(bus: Bus, number: int) -> bool:
    return (await (await bus.stream()).stream_info(DEAD_STREAM)).state.messages == number


async def test_what_is_no_event_goes_to_the_dead(database, event_log: EventLog, bus: Bus, ledger: Ledger) -> None:
    context = await bus.stream()
    for data in (b"", b"not json", b"[]", b'{"type": "rlhf.event.v1.Other"}'):
        await context.publish("rlhf.event.v1.TrainingJobChanged.default", data)
    async with relaying(database, event_log, bus), consuming(ledger, bus):
        await write(database, event_log, "a")
        await until(lambda: ledger.has(1))
        await until(lambda: has_dead(bus, 4))


async def test_a_new_version_of_a_consumer_gets_its_new_events(
    database, event_log: EventLog, bus: Bus, ledger: Ledger
) -> None:
    async with relaying(database, event_log, bus):
        async with consuming(ledger, bus):
            await write(database, event_log, "a")
            await until(lambda: ledger.has(1))
        versions: list[Message] = []

        async def version(connection: Connection, message: Message) -> None:
            versions.append(message)

        async with consuming(ledger, bus, version=version):
            async with database.transaction() as connection:
                await event_log.add(connection, f"{PROJECT}/datasets/d/versions/1", 1, DatasetVersionCreated())
                await event_log.add(connection, f"{PROJECT}/x", 1, CheckpointChanged())  # of no interest
            await until(lambda: len(versions) == 1)
            await write(database, event_log, "b")
            await until(lambda: ledger.has(2))


async def test_nats_is_killed_and_comes_back(database, event_log: EventLog, ledger: Ledger, tmp_path: Path) -> None:
    """It also starts later than we do. Events are written all the while, and each takes effect once."""
    server = embedded.Nats(tmp_path / "nats", embedded.free_port())
    program = server.program(tmp_path / "log")
    async with contextlib.AsyncExitStack() as stack:
        (tmp_path / "nats").mkdir()
        bus = await stack.enter_async_context(Bus(server.url, "testing"))
        await stack.enter_async_context(relaying(database, event_log, bus))
        await stack.enter_async_context(consuming(ledger, bus))
        for number in range(5):
            await write(database, event_log, f"before{number}")
        for round_ in range(2):
            async with process.running(program) as running:
                await until(lambda round_=round_: ledger.has(5 + 10 * round_), 30)
                for number in range(5):
                    await write(database, event_log, f"during{round_}-{number}")
                    if number == 2:
                        running.kill()
                        await running.wait()
            for number in range(5):
                await write(database, event_log, f"after{round_}-{number}")
        async with process.running(program):
            await until(lambda: ledger.has(25), 30)
            await until(lambda: is_count(database, UNPUBLISHED, 0))
    entries = await ledger.entries()
    assert len(entries) == len(set(entries)) == 25


async def test_postgres_is_restarted_under_load(bus: Bus, tmp_path: Path) -> None:
    """Writers try again; every event that was committed takes effect once, and none is given up as dead."""
    server = embedded.Postgres(tmp_path / "pg", embedded.free_port())  # durable: what was committed must be there
    program = server.program(tmp_path / "log")
    written: list[str] = []

    async def write_all(log: EventLog, database: Database) -> None:
        for number in range(60):
            while True:
                try:
                    await write(database, log, f"j{number}")
                    break
                except Exception:
                    await asyncio.sleep(0.1)
                    if await exists(database, f"{PROJECT}/trainingJobs/j{number}"):
                        break  # the answer was lost, not the commit
            written.append(f"j{number}")
            await asyncio.sleep(0.02)

    async with contextlib.AsyncExitStack() as stack:
        async with process.running(program) as running:
            database = Database(server.url, "testing")
            await database.migrate("services.mesh")
            await stack.enter_async_context(database)
            log, ledger = EventLog(database), await Ledger(database).prepare()
            await stack.enter_async_context(relaying(database, log, bus))
            await stack.enter_async_context(consuming(ledger, bus))
            writer = asyncio.create_task(write_all(log, database))
            await until(lambda: len(written) >= 20)
            running.kill()
            await running.wait()
        await stack.enter_async_context(process.running(program))
        await until(writer.done, 40)
        await until(lambda: ledger.has(60), 30)
        await stack.aclose()
    assert not await messages(bus, DEAD_STREAM)
    assert len(set(ledger.tries)) == 60


async def exists(database: Database, resource: str) -> bool:
    while True:
        try:
            return bool(await rows(database, "SELECT 1 FROM events WHERE resource = %s", resource))
        except Exception:
            await asyncio.sleep(0.1)


async def test_the_log_of_a_resource_holds_what_is_below_it_and_nothing_beside_it(database: Database) -> None:
    log, job = EventLog(database), f"{PROJECT}/trainingJobs/j"
    names = ["", "/checkpoints/c", "-2", "0", "/checkpoints/c0", "j", ".x"]
    async with database.transaction() as connection:
        for sequence, name in enumerate(names, 1):
            await log.add(connection, f"{job}{name}", sequence, CheckpointChanged())
        found = await log.after(connection, job, 0)
        assert [event.sequence for event in found] == [1, 2, 5]
        assert [event.sequence for event in await log.after(connection, job, 2)] == [5]
        cursor = await connection.execute("SET LOCAL enable_seqscan = off")
        cursor = await connection.execute(
            "EXPLAIN SELECT 1 FROM events WHERE (resource || '/') COLLATE \"C\" >= 'a/' AND"
            " (resource || '/') COLLATE \"C\" < 'a0' AND sequence > 1"
        )
        assert "events_below" in str(await cursor.fetchall())
