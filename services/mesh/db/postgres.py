"""PostgreSQL: a pool bound to one schema, ordered migrations, transactions, and notices between processes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from importlib.resources import files
from typing import Any

import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from services.mesh.errors import InvalidArgument, Unavailable
from services.mesh.telemetry import metrics
from services.mesh.telemetry.metrics import Observation

log = logging.getLogger(__name__)

Connection = AsyncConnection[TupleRow]
MAX_CONNECTIONS = 10
CHECKOUT_TIMEOUT_SECONDS = 10.0
# A process that is frozen inside a transaction gives up its locks: others wait for the job that it holds.
IDLE_TRANSACTION_SECONDS = 30.0
_RECONNECT_SECONDS = 0.2
# So long psycopg waits for the next notice after one, before the socket is watched without it.
_NOTICES_SECONDS = 0.05
_RECONNECT_ROUND_SECONDS = 2.0
# A server that vanished without a word is noticed within a minute; TCP alone takes two hours.
_CONNECTION: dict[str, Any] = {
    "connect_timeout": 5,
    "keepalives_idle": 20,
    "keepalives_interval": 10,
    "keepalives_count": 3,
}
# The one schema that services share: references to what lies in the artifact store (services/mesh/artifacts).
ARTIFACTS_SCHEMA = "artifacts"
ARTIFACTS_PACKAGE = "services.mesh.artifacts"
# Any number will do, as long as all migrations take the same lock.
_MIGRATION_LOCK = 0x726C6866


class Database:
    """The tables of one service. An async context manager: opens the pool and listens for notices."""

    def __init__(self, url: str, schema: str) -> None:
        self.schema = schema
        self._url = url
        self._pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
            url,
            kwargs={"options": _options(schema), **_CONNECTION},
            min_size=1,
            max_size=MAX_CONNECTIONS,
            timeout=CHECKOUT_TIMEOUT_SECONDS,
            # Without it most check-outs after a restart of the server hand out dead connections.
            check=AsyncConnectionPool.check_connection,
            reconnect_timeout=_RECONNECT_ROUND_SECONDS,
            reconnect_failed=self._try_on,
            open=False,
        )
        self._requests: set[asyncio.Task[None]] = set()
        self._observed = contextlib.ExitStack()
        self.notices = Notices(url, f"rlhf_{schema}")

    async def __aenter__(self) -> Database:
        await self._pool.open()
        await self.notices.start()
        for name in ("count", "max", "pending_requests"):
            full = f"db.client.connection.{name}"
            self._observed.enter_context(metrics.observed(full, functools.partial(self._connections, name)))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._observed.close()
        await self.notices.stop()
        await self._pool.close()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection inside one transaction, which commits at the end. No network call belongs inside.

        Raises Unavailable when the server cannot be reached or goes away in the middle, InvalidArgument for text that
        it cannot store.
        """
        try:
            async with self._pool.connection() as connection:
                yield connection
        except psycopg.errors.DiskFull as error:
            raise Unavailable(
                "DATABASE_DISK_FULL", "the disk of the database is full; free some space on it"
            ) from error
        except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout) as error:
            raise Unavailable("DATABASE_UNAVAILABLE", "the database cannot be reached; try again") from error
        except psycopg.DataError as error:
            if "NUL" in str(error) or isinstance(error, psycopg.errors.UntranslatableCharacter):
                raise InvalidArgument.of("", "text must not hold the character NUL (U+0000)") from error
            raise

    async def migrate(self, *packages: str) -> None:
        """Apply `migrations/*.sql` of each package, in order and once, into the schema; several processes may try.

        Before them those of the schema that all services share, where this one is then known to keep its references.
        """
        async with await AsyncConnection.connect(self._url, **_CONNECTION) as connection:
            await connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            await _migrate(connection, ARTIFACTS_SCHEMA, (ARTIFACTS_PACKAGE,))
            await _migrate(connection, self.schema, packages)
            await connection.execute(
                "INSERT INTO artifacts.services (schema) VALUES (%s) ON CONFLICT DO NOTHING", (self.schema,)
            )

    async def notify(self, connection: Connection, topic: str) -> None:
        """Wake who waits for `topic` once this transaction has committed."""
        await connection.execute("SELECT pg_notify(%s, %s)", (f"rlhf_{self.schema}", topic))

    def _connections(self, what: str) -> Iterator[Observation]:
        pool = {"db.client.connection.pool.name": self.schema}
        found = self._pool.get_stats()
        idle = found.get("pool_available", 0)
        if what == "count":
            yield Observation(idle, {**pool, "db.client.connection.state": "idle"})
            yield Observation(found.get("pool_size", 0) - idle, {**pool, "db.client.connection.state": "used"})
        else:
            yield Observation(MAX_CONNECTIONS if what == "max" else found.get("requests_waiting", 0), pool)

    async def _try_on(self, _: object) -> None:
        """Called when a round of reconnecting has failed: a request for a connection begins the next one.

        Left to itself the pool doubles its pause each time, and would be away up to twice as long as the server.
        """
        task = asyncio.create_task(self._request())  # not awaited: the caller is one of the pool's few workers
        self._requests.add(task)
        task.add_done_callback(self._requests.discard)

    async def _request(self) -> None:
        with contextlib.suppress(psycopg.OperationalError):
            async with self._pool.connection():
                pass


def _options(schema: str) -> str:
    idle = int(IDLE_TRANSACTION_SECONDS * 1000)
    return f"-c search_path={schema} -c timezone=UTC -c idle_in_transaction_session_timeout={idle}"


async def _migrate(connection: Connection, schema: str, packages: tuple[str, ...]) -> None:
    await connection.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(schema)))
    await connection.execute(sql.SQL("SET LOCAL search_path TO {}").format(sql.Identifier(schema)))
    await connection.execute(
        "CREATE TABLE IF NOT EXISTS migrations (file text PRIMARY KEY, apply_time timestamptz NOT NULL DEFAULT now())"
    )
    rows = await (await connection.execute("SELECT file FROM migrations")).fetchall()
    applied = {row[0] for row in rows}
    for name, script in _scripts(packages):
        if name not in applied:
            log.info("migrating %s: %s", schema, name)
            await connection.execute(script.encode())
            await connection.execute("INSERT INTO migrations (file) VALUES (%s)", (name,))


def _scripts(packages: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    for package in packages:
        folder = files(package) / "migrations"
        for path in sorted(folder.iterdir(), key=lambda path: path.name):
            if path.name.endswith(".sql"):
                yield f"{package}/{path.name}", path.read_text()


class Notices:
    """LISTEN on one channel, fanned out by topic to the waiters of this process.

    A lost connection is made again and wakes everybody, since a notice may have been missed meanwhile.
    """

    def __init__(self, url: str, channel: str) -> None:
        self._url = url
        self._channel = channel
        self._waiters: defaultdict[str, set[asyncio.Event]] = defaultdict(set)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._task = asyncio.create_task(self._listen(), name=f"notices {self._channel}")

    async def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    @contextlib.contextmanager
    def subscribe(self, *topics: str) -> Iterator[asyncio.Event]:
        """An event that is set by each notice on one of `topics`; clear it before you read what it is about."""
        event = asyncio.Event()
        for topic in topics:
            self._waiters[topic].add(event)
        try:
            yield event
        finally:
            for topic in topics:
                self._waiters[topic].discard(event)
                if not self._waiters[topic]:
                    del self._waiters[topic]

    async def _listen(self) -> None:
        while True:
            try:
                async with await AsyncConnection.connect(self._url, autocommit=True, **_CONNECTION) as connection:
                    await connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(self._channel)))
                    self._wake(*self._waiters)
                    while True:
                        async for notice in connection.notifies(timeout=_NOTICES_SECONDS):
                            self._wake(notice.payload)
                        await _readable(connection.fileno())
            except (psycopg.Error, OSError) as error:
                log.warning("lost the notice connection: %s", error)
            await asyncio.sleep(_RECONNECT_SECONDS)

    def _wake(self, *topics: str) -> None:
        for topic in topics:
            for event in self._waiters.get(topic, ()):
                event.set()


async def _readable(descriptor: int) -> None:
    """Until there is something to read from a socket, its end included. psycopg's own wait wakes ten times a second, in
    every process of the mesh."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(descriptor, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(descriptor)


async def wait(event: asyncio.Event, timeout_seconds: float) -> bool:
    """Wait for `event` and clear it. False when the time ran out."""
    try:
        # Not wait_for, which in Python 3.11 swallows a cancellation that arrives together with the event.
        async with asyncio.timeout(timeout_seconds):
            await event.wait()
    except TimeoutError:
        return False
    event.clear()
    return True


def is_unique_violation(error: BaseException, constraint: str) -> bool:
    return isinstance(error, psycopg.errors.UniqueViolation) and error.diag.constraint_name == constraint


Json = dict[str, Any]
