"""The embedded PostgreSQL and NATS: they want a password, keep their data, and survive kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlencode

import nats.errors
import psycopg
import pytest

from services.mesh import identity
from services.mesh.events import nkeys
from services.mesh.events.bus import Bus, connect
from services.mesh.events.nkeys import UserKey
from services.mesh.processes import procfs
from services.supervisor import embedded
from services.supervisor.embedded import process, ray_tls, users


def without_password(url: str) -> str:
    bare = url.partition("?")[0]
    scheme, _, rest = bare.partition("://")
    user = rest.partition("@")[0].partition(":")[0]
    return f"{scheme}://{user}@{rest.partition('@')[2]}"


def with_wrong_password(url: str) -> str:
    return without_password(url).replace("@", ":wrong@")


@pytest.mark.parametrize("spoil", [without_password, with_wrong_password])
def test_postgres_refuses_who_lacks_the_password(postgres_url: str, spoil) -> None:
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(spoil(postgres_url))


async def test_nats_refuses_who_lacks_the_key(nats_server: embedded.Nats, tmp_path: Path) -> None:
    address, other = nats_server.url.partition("?")[0], embedded.Nats(tmp_path, nats_server.port)
    nkeys.ensure_seed(other.seed)
    public = UserKey.read(nats_server.seed).public
    certificate = urlencode({"certificate": nats_server.certificate})
    addresses = (address, address.replace("//", f"//{public}:x@"), address.replace("//", f"//{public}@"))
    seed = urlencode({"nkey": other.seed})
    for url in (*(f"{each}?{certificate}" for each in addresses), f"{address}?{seed}&{certificate}"):
        with pytest.raises(nats.errors.Error, match=r"(?i)authorization"):
            await connect(url, allow_reconnect=False, error_cb=quiet)


def context_of(folder: Path) -> ssl.SSLContext:
    """Of a server with a certificate that looks like the home's, and is another."""
    ray_tls.ensure(made := folder / "his.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made)
    return context


@pytest.mark.parametrize("his", [None, context_of], ids=["plain", "tls"])
async def test_somebody_on_the_port_of_nats_is_told_nothing_until_the_true_one_is_back(
    tmp_path: Path, his: Callable[[Path], ssl.SSLContext] | None, caplog: pytest.LogCaptureFixture
) -> None:
    server, is_there, heard = embedded.Nats(tmp_path / "nats", embedded.free_port()), asyncio.Event(), []

    async def rogue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        said = b'INFO {"server_id":"x","version":"2.15.1","auth_required":true,"nonce":"n","max_payload":1}\r\n'
        with contextlib.suppress(ConnectionError):
            writer.write(said)
            heard.append(await reader.read(4096))
            writer.write(said)
            heard.append(await reader.read(4096))
        writer.close()

    async def told(of_use: bool) -> None:
        if of_use:
            is_there.set()

    async with Bus(server.url, "testing", told):
        context = his(tmp_path) if his else None
        async with await asyncio.start_server(rogue, "127.0.0.1", server.port, ssl=context):
            while "the port of NATS is another's" not in caplog.text:  # noqa: ASYNC110 - a log has no event
                await asyncio.sleep(0.05)
        assert not is_there.is_set()
        async with process.running(server.program(tmp_path / "log")):
            await asyncio.wait_for(is_there.wait(), 30)
    # Nothing, or how TLS begins (22) and how it ends (21).
    assert all(not said or said[0] in {21, 22} for said in heard)
    assert not any(word in b"".join(heard) for word in (b"CONNECT", UserKey.read(server.seed).public.encode()))
    assert caplog.text.count("it lacks the certificate") == 1


async def test_nats_speaks_with_nobody_who_knows_no_certificate(nats_server: embedded.Nats) -> None:
    url = nats_server.url.partition("&")[0]
    with pytest.raises((nats.errors.Error, TimeoutError)):
        await connect(url, allow_reconnect=False, max_reconnect_attempts=1, connect_timeout=1, error_cb=quiet)


async def quiet(error: Exception) -> None: ...


async def test_a_home_of_an_earlier_version_loses_its_password_and_no_message(tmp_path: Path) -> None:
    server = embedded.Nats(tmp_path / "nats", embedded.free_port())
    server.folder.mkdir()
    (server.folder / "password").write_text("old")
    async with process.running(server.program(tmp_path / "log")):
        assert sorted(path.name for path in server.folder.iterdir()) == [
            "certificate",
            "jetstream",
            "nats.conf",
            "seed",
        ]
        assert b"old" not in (server.folder / "nats.conf").read_bytes()


def test_services_role_is_no_superuser(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("CREATE SCHEMA trainer")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SELECT pg_read_file('/etc/hostname')")


async def test_postgres_keeps_rows_over_stop_and_kill(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port())
    program = server.program(tmp_path / "log")
    async with process.running(program):
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) i")
    assert not procfs.in_folder(server.data)
    async with process.running(program) as running:
        with psycopg.connect(server.url) as connection:
            connection.execute("INSERT INTO t SELECT generate_series(1, 500)")
        running.kill()
    async with process.running(program):
        with psycopg.connect(server.url) as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (1500,)


async def test_postgres_starts_over_a_pid_file_whose_number_belongs_to_another_process(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    program = server.program(tmp_path / "log")
    async with process.running(program) as running:
        lines = (server.data / "postmaster.pid").read_text().splitlines()
        running.kill()
    (server.data / "postmaster.pid").write_text("\n".join([str(os.getpid()), *lines[1:]]))
    async with process.running(program):
        assert await server.is_ready()


async def test_second_postgres_takes_the_place_of_a_leftover_one(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    program = server.program(tmp_path / "log")
    first = await process.spawn(program)
    await process.until_ready(program, first)
    async with process.running(program) as second:
        assert await first.wait() == 0
        assert second.pid in procfs.in_folder(server.data)
        assert first.pid not in procfs.in_folder(server.data)


async def test_postgres_that_was_cut_short_in_its_first_start_is_made_again(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    (server.folder / "data.new" / "base").mkdir(parents=True)
    async with process.running(server.program(tmp_path / "log")):
        assert await server.is_ready()


def spoil_control(data: Path) -> None:
    (data / "global" / "pg_control").write_bytes(bytes(8192))


def lose_control(data: Path) -> None:
    (data / "global" / "pg_control").unlink()


def lose_log(data: Path) -> None:
    for path in (data / "pg_wal").iterdir():
        if path.is_file():
            path.unlink()


def age(data: Path) -> None:
    (data / "PG_VERSION").write_text("17\n")


@pytest.mark.parametrize(
    ("harm", "remedy"),
    [
        (age, "made by another PostgreSQL"),
        (spoil_control, "`rlhf restore`"),
        (lose_control, "`rlhf restore`"),
        (lose_log, "`rlhf restore`"),
    ],
)
async def test_postgres_that_cannot_start_says_what_to_do(
    tmp_path: Path, harm: Callable[[Path], None], remedy: str
) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    program = server.program(tmp_path / "log")
    async with process.running(program):
        pass
    harm(server.data)
    with pytest.raises(process.StartFailed, match="before it was ready") as caught:
        async with process.running(program):
            raise AssertionError("it started")
    assert remedy in caught.value.message.splitlines()[-1]


async def test_what_an_earlier_start_said_leads_to_nothing(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    program = server.program(tmp_path / "log")
    (tmp_path / "log").write_text("FATAL:  could not write: No space left on device\n")
    async with process.running(program):
        assert program.remedy() == ""


async def test_postgres_whose_port_is_taken_names_it(tmp_path: Path) -> None:
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    with socket.socket() as other:
        other.bind(("127.0.0.1", server.port))
        other.listen()
        with pytest.raises(process.StartFailed, match=f"has port {server.port} .*: end it"):
            async with process.running(server.program(tmp_path / "log")):
                raise AssertionError("it started")


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ('FATAL:  could not write lock file "postmaster.pid": No space left on device', "is full: make room"),
        ("FATAL:  could not map anonymous shared memory: Cannot allocate memory", "no memory left"),
        ('FATAL:  data directory "/proc/self/cwd" has wrong ownership', "belong to somebody else"),
        ("FATAL:  could not create shared memory segment: No space left on device", "none in /dev/shm"),
        ('FATAL:  data directory "/proc/self/cwd" has invalid permissions', "chmod 700"),
        ('FATAL:  could not open file "base/1/2": Too many open files', ""),
        ("ERROR:  permission denied for table jobs", ""),
        ("FATAL:  something that nobody has seen", ""),
    ],
)
def test_what_postgres_says_leads_to_what_to_do(tmp_path: Path, words: str, remedy: str) -> None:
    assert remedy in (found := embedded.Postgres(tmp_path / "postgres", 1).remedy(words))
    assert bool(found) == bool(remedy)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
async def test_postgres_of_root_is_a_user_of_its_own_that_reads_no_file_but_its_own(tmp_path: Path) -> None:
    async with embedded.postgres(tmp_path / "pg", durable=False) as server:
        status = status_of(server)
        [uids] = re.findall(r"^Uid:\t(.+)", status, re.MULTILINE)
        assert all(users.FIRST <= int(uid) <= users.LAST for uid in uids.split())
        capabilities = re.findall(r"^Cap(?:Eff|Prm|Amb):\t(\w+)", status, re.MULTILINE)
        assert {int(each, 16) for each in capabilities} == {0}
        with psycopg.connect(server.administrator_url, autocommit=True) as connection:
            for path in ("/etc/shadow", str(tmp_path / "pg" / "password")):
                with pytest.raises(psycopg.errors.InsufficientPrivilege, match="Permission denied"):
                    connection.execute("SELECT pg_read_file(%s)", (path,))


def status_of(server: embedded.Postgres) -> str:
    pid = int((server.data / "postmaster.pid").read_text().split()[0])
    return Path(f"/proc/{pid}/status").read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
async def test_data_of_another_user_are_taken_over_with_what_they_hold(tmp_path: Path) -> None:
    """As of `nobody`, who had them once, or of who restored a backup; also where that was cut short."""
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port(), durable=False)
    async with process.running(server.program(tmp_path / "log")):
        with psycopg.connect(server.url) as connection:
            connection.execute("CREATE TABLE t AS SELECT 42 AS i")
    before = server.data.stat().st_uid
    for path in [*sorted(server.data.rglob("*"))[::2], server.data]:
        os.chown(path, 65534, 65534)
    again = embedded.Postgres(tmp_path / "postgres", server.port, durable=False)
    async with process.running(again.program(tmp_path / "log")):
        with psycopg.connect(again.url) as connection:
            assert connection.execute("SELECT i FROM t").fetchone() == (42,)
        assert {path.stat().st_uid for path in (server.data, *server.data.rglob("*"))} == {before}


async def test_somebody_on_the_port_of_postgres_gets_no_password(tmp_path: Path) -> None:
    """He asks for it in the clear, as PostgreSQL's protocol lets a server do."""
    server = embedded.Postgres(tmp_path / "postgres", embedded.free_port())
    told: asyncio.Queue[bytes] = asyncio.Queue()

    async def rogue(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = await reader.read(1000)
        if first[4:8] == b"\x04\xd2\x16\x2f":  # an SSLRequest
            writer.write(b"N")
            first = await reader.read(1000)
        writer.write(b"R\0\0\0\x08\0\0\0\x03")  # AuthenticationCleartextPassword
        told.put_nowait(first + await reader.read(1000))
        writer.close()

    async with await asyncio.start_server(rogue, "127.0.0.1", server.port):
        for url in (server.url, server.administrator_url):
            with pytest.raises(psycopg.OperationalError, match="requested a cleartext password"):
                await psycopg.AsyncConnection.connect(url)
            heard = await told.get()
            assert b"user\0" in heard
            assert not any(secret_of(server.folder / name) in heard for name in ("password", "administrator_password"))


def secret_of(path: Path) -> bytes:
    return identity.read_token(path).encode()


async def test_nats_keeps_messages_over_kill(tmp_path: Path) -> None:
    server = embedded.Nats(tmp_path / "nats", embedded.free_port())
    program = server.program(tmp_path / "log")
    async with process.running(program) as running:
        connection = await connect(server.url, allow_reconnect=False)
        await connection.jetstream().add_stream(name="S", subjects=["s"])
        await connection.jetstream().publish("s", b"kept")
        running.send_signal(signal.SIGKILL)
        await running.wait()
    async with process.running(program):
        connection = await connect(server.url)
        assert (await connection.jetstream().get_msg("S", 1)).data == b"kept"
        await connection.close()


def command_lines() -> bytes:
    """Of every process of the machine."""
    found = b""
    for pid in procfs.pids():
        with contextlib.suppress(OSError):
            found += Path(f"/proc/{pid}/cmdline").read_bytes()
    return found


async def test_secrets_are_for_the_owner_only_and_in_no_command_line(tmp_path: Path) -> None:
    async with embedded.nats(tmp_path / "nats") as nats, embedded.postgres(tmp_path / "pg", durable=False) as postgres:
        words = command_lines()
        for server, name in ((nats, "seed"), (postgres, "password")):
            secret = secret_of(server.folder / name)
            assert secret not in words
            logs = b"".join(path.read_bytes() for path in server.folder.glob("*.log"))
            assert logs
            assert secret not in logs
            assert server.folder.stat().st_mode & 0o777 == 0o700
            assert all(path.stat().st_mode & 0o077 == 0 for path in server.folder.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="as a user this is what the other tests do")
async def test_postgres_of_an_ordinary_user(tmp_path: Path) -> None:
    code = """
import asyncio, os, sys
from pathlib import Path
import psycopg
from services.supervisor import embedded
async def main():
    assert os.geteuid() == 65534
    async with embedded.postgres(Path(sys.argv[1]), durable=False) as server:
        assert server.program(Path("x")).user is None
        print(psycopg.connect(server.url).execute("SELECT current_user").fetchone()[0])
asyncio.run(main())
"""
    folder = tmp_path / "home"
    folder.mkdir(mode=0o700)
    os.chown(folder, 65534, 65534)
    # The interpreter itself may lie in a folder closed to the user, hence the launcher with its capability.
    words = [
        *process.launcher(process.User(65534, 65534, passes=True), None),
        sys.executable,
        "-c",
        code,
        str(folder / "postgres"),
    ]
    # That user may not write where coverage is gathered.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    child = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    )
    output, _ = await child.communicate()
    assert output.decode().strip() == "rlhf"
