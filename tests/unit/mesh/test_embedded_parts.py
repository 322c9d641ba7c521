"""Processes by number and start, private files, ports, and the launcher."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.mesh.processes import procfs
from services.supervisor import embedded
from services.supervisor.embedded import home, launch, ports, process, ray_head
from services.supervisor.embedded.postgres_server import scram_verifier


def program(tmp_path: Path, script: str, **changes) -> process.Program:
    return process.Program(
        "part", ("/bin/sh", "-c", script), {"PATH": os.environ["PATH"]}, tmp_path / "part.log", **changes
    )


def test_reused_number_is_another_process() -> None:
    me = procfs.identify(os.getpid())
    assert me is not None
    assert me.alive()
    assert not procfs.ProcessId(me.pid, me.start_ticks - 1).alive()


def test_zombie_is_not_alive() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert procfs.identify(child.pid) is None


def test_process_whose_name_holds_spaces_and_parentheses_is_read(tmp_path: Path) -> None:
    odd = tmp_path / ") S 1 ("
    odd.symlink_to("/bin/sleep")
    with subprocess.Popen([str(odd), "60"], start_new_session=True) as child:
        deadline = time.monotonic() + 5
        while b"60" not in Path(f"/proc/{child.pid}/cmdline").read_bytes() and time.monotonic() < deadline:
            time.sleep(0.01)
        found = procfs.identify(child.pid)
        assert found is not None
        assert found.start_ticks > 1000
        assert procfs.session_members(child.pid) == [child.pid]
        assert child.pid in procfs.tree(os.getpid())
        assert procfs.memory_bytes([child.pid]) > 10_000
        child.kill()


def test_private_file_is_replaced_as_a_whole_and_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    home.write_private(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_secret_is_made_once_at_random_and_closed_to_others(tmp_path: Path) -> None:
    one, other = tmp_path / "a" / "secret", tmp_path / "b" / "secret"
    word = home.secret(one)
    assert home.secret(one) == word
    assert home.secret(other) != word
    assert len(word) >= 32
    assert one.stat().st_mode & 0o777 == 0o600
    assert one.parent.stat().st_mode & 0o777 == 0o700


def test_home_is_closed_to_others_whatever_it_was(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    embedded.Home(tmp_path).make()
    assert tmp_path.stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_free_port_is_free_not_taken_and_not_one_for_outgoing_connections() -> None:
    taken: set[int] = set()
    found = [ports.free_port(taken) for _ in range(20)]
    assert len(set(found)) == 20
    assert taken == set(found)
    assert all(ports.is_free(port) and port < 32_768 for port in found)
    with socket.create_server(("127.0.0.1", found[0])):
        assert not ports.is_free(found[0])


def test_verifier_differs_each_time_and_does_not_hold_the_password() -> None:
    one, two = scram_verifier("secret"), scram_verifier("secret")
    assert one != two
    assert one.startswith("SCRAM-SHA-256$4096:")
    assert "secret" not in one


async def test_program_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys
from pathlib import Path
from services.supervisor.embedded import process
async def main():
    log = Path({str(tmp_path)!r}) / "log"
    for name, number in (("tied", 15), ("free", None)):
        program = process.Program(name, ("/bin/sleep", "600"), {{}}, log, death_signal=number)
        print((await process.spawn(program)).pid, flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    tied, free = [procfs.identify(int(await parent.stdout.readline())) for _ in range(2)]
    assert tied is not None
    assert free is not None
    parent.kill()
    await parent.wait()
    async with asyncio.timeout(5):
        while tied.alive():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert free.alive()
    procfs.kill([free.pid])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_program_as_another_user_reads_below_a_closed_folder_and_writes_nothing_there(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("seen\n")
    script = f"cat {closed}/file; id -u; touch {closed}/new || echo refused"
    child = await process.spawn(program(tmp_path, script, user=process.User(65534, 65534, passes=True)))
    await child.wait()
    words = (tmp_path / "part.log").read_text().split()
    assert words[:2] == ["seen", "65534"]
    # Where the machine grants only the stronger capability, as Docker does, it may write too.
    if launch.searching_capability() == launch.CAP_DAC_READ_SEARCH:
        assert words[-1] == "refused"


async def test_stop_asks_then_kills_the_whole_session(tmp_path: Path) -> None:
    gentle = program(tmp_path, "sleep 600 & trap 'exit 0' TERM; while :; do sleep 0.02; done", stop_seconds=5)
    deaf = program(tmp_path, "trap '' TERM; sleep 600 & while :; do sleep 0.02; done", stop_seconds=0.3)
    for part, ends in ((gentle, True), (deaf, False)):
        child = await process.spawn(part)
        await asyncio.sleep(0.5)
        assert len(procfs.session_members(child.pid)) >= 2
        assert await process.stop(part, child) is ends
        assert procfs.session_members(child.pid) == []
        assert child.returncode == (0 if ends else -signal.SIGKILL)


async def test_log_is_appended_to_and_for_the_owner_only(tmp_path: Path) -> None:
    for _ in range(2):
        await (await process.spawn(program(tmp_path, "echo line; echo error >&2"))).wait()
    log = tmp_path / "part.log"
    assert log.read_text().split() == ["line", "error"] * 2
    assert log.stat().st_mode & 0o777 == 0o600
    assert process.log_tail(log, 1) == "  | error"
    assert process.log_tail(tmp_path / "absent") == ""


@pytest.mark.parametrize(("code", "text"), [(3, "exit code 3"), (-9, "signal SIGKILL"), (-200, "signal 200")])
def test_ending_in_words(code: int, text: str) -> None:
    assert process.ending(code) == text


def test_folder_of_ray_is_short_for_any_home_and_another_for_another(tmp_path: Path) -> None:
    resources = ray_head.default_resources(1)
    deep, other = (ray_head.RayHead(tmp_path / name, 1, resources) for name in ("x" * 200, "y"))
    assert deep.temporary != other.temporary
    assert len(str(deep.temporary)) < 40


async def test_ray_refuses_a_folder_that_is_open_to_others(tmp_path: Path) -> None:
    head = ray_head.RayHead(tmp_path / "ray", 1, ray_head.default_resources(1))
    try:
        await head.prepare()
        head.temporary.chmod(0o777)
        with pytest.raises(embedded.StartFailed, match="open to others"):
            await head.prepare()
    finally:
        head.temporary.rmdir()


def test_resources_follow_what_is_asked_and_are_never_none() -> None:
    assert ray_head.default_resources(5).slots == 5
    found = ray_head.default_resources()
    assert found.slots >= 1
    assert found.cpus >= 16 * found.slots
    assert found.object_store_bytes >= 100 * 1024**2
