"""The supervisor over small real processes: order, restarts, refusal, and nothing left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.mesh.errors import FailedPrecondition
from services.mesh.processes import procfs
from services.supervisor import leftovers, probes, state
from services.supervisor.embedded import Home, StartFailed
from services.supervisor.embedded.process import Program
from services.supervisor.group import Plan, Planned, Supervisor
from services.supervisor.state import MeshState, Phase, ProcessState, Stage

# Tells when it starts and when it is asked to stop; `exec` would lose the trap.
SCRIPT = (
    'echo "start $0" >> "$1"; trap \'echo "stop $0" >> "$1"; exit 0\' TERM; touch "$2"; while :; do sleep 0.02; done'
)


@pytest.fixture
def mesh_home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home")
    home.make()
    return home


def program(home: Home, name: str, script: str = SCRIPT, **changes) -> Program:
    ready_file = home.run / f"{name}.ready"

    async def prepare() -> None:
        ready_file.unlink(missing_ok=True)

    defaults = {
        "arguments": ("/bin/sh", "-c", script, name, str(home.run / "events"), str(ready_file)),
        "environment": {"PATH": os.environ["PATH"], leftovers.MARK: str(home.root)},
        "log": home.log(name),
        "prepare": prepare,
        "ready": probes.file_there(ready_file),
        "ready_seconds": 10.0,
        "stop_seconds": 3.0,
    }
    return Program(name=name, **{**defaults, **changes})


def make_plan(home: Home, **scripts: str) -> Plan:
    """`base` and `ray`, and on top of the former `service` and `worker`."""

    def planned(name: str, *needs: str, **changes) -> Planned:
        return Planned(program(home, name, scripts.get(name, SCRIPT), **changes), needs)

    return Plan(
        [planned("base"), planned("ray", death_signal=None)],
        [planned("service", "base"), planned("worker", "base")],
        {"http": "http://127.0.0.1:1"},
    )


@contextlib.asynccontextmanager
async def up(home: Home, plan: Plan | None = None) -> AsyncIterator[Supervisor]:
    """A supervisor whose mesh is ready."""
    supervisor = Supervisor(home, lambda kept: plan or make_plan(home), keep={"ray"})
    task = asyncio.create_task(supervisor.run())
    try:
        await until(lambda: supervisor.state.phase is Phase.READY or task.done(), 20)
        yield supervisor
    finally:
        supervisor.stop()
        await task


def process_of(supervisor: Supervisor, name: str) -> ProcessState:
    return next(each for each in supervisor.state.processes if each.name == name)


def alive_of(home: Home) -> list[procfs.ProcessId]:
    return procfs.with_variable(leftovers.MARK, str(home.root))


async def until(condition, seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_starts_after_what_is_needed_and_stops_in_reverse(mesh_home: Home) -> None:
    async with up(mesh_home):
        assert json.loads(mesh_home.endpoints.read_text()) == {"http": "http://127.0.0.1:1", "pid": os.getpid()}
        assert mesh_home.endpoints.stat().st_mode & 0o777 == 0o600
        assert mesh_home.state.stat().st_mode & 0o777 == 0o600
    events = (mesh_home.run / "events").read_text().splitlines()
    assert events.index("start base") < min(events.index("start service"), events.index("start worker"))
    assert [event for event in events if event.startswith("stop")] == [
        "stop worker", "stop service", "stop ray", "stop base",
    ]  # fmt: skip
    assert not mesh_home.endpoints.exists()
    final = state.read(mesh_home.state)
    assert final is not None
    assert final.phase is Phase.STOPPED
    assert {each.stage for each in final.processes} == {Stage.STOPPED}
    assert alive_of(mesh_home) == []


@pytest.mark.parametrize("name", ["base", "ray", "service", "worker"])
async def test_killed_process_is_started_again_and_no_other(mesh_home: Home, name: str) -> None:
    async with up(mesh_home) as supervisor:
        before = {each.name: each.id for each in supervisor.state.processes}
        victim = before[name]
        assert victim is not None
        os.kill(victim.pid, signal.SIGKILL)
        await until(lambda: process_of(supervisor, name).restarts == 1)
        await until(lambda: process_of(supervisor, name).stage is Stage.READY)
        after = {each.name: each.id for each in supervisor.state.processes}
        assert {key for key in after if after[key] != before[key]} == {name}
        assert after[name] is not None
        assert after[name].alive()
        assert process_of(supervisor, name).message == "signal SIGKILL"
        assert state.read(mesh_home.state) == supervisor.state
    assert alive_of(mesh_home) == []


async def test_pause_between_restarts_grows(mesh_home: Home) -> None:
    async with up(mesh_home) as supervisor:
        pauses = []
        for count in (1, 2, 3):
            victim = process_of(supervisor, "service").id
            assert victim is not None
            os.kill(victim.pid, signal.SIGKILL)
            await until(lambda wanted=count: process_of(supervisor, "service").restarts == wanted)
            died = asyncio.get_running_loop().time()
            await until(lambda: process_of(supervisor, "service").stage is Stage.READY)
            pauses.append(asyncio.get_running_loop().time() - died)
        assert pauses[2] > pauses[0] + 0.5


async def test_second_supervisor_of_a_home_is_refused_and_changes_nothing(mesh_home: Home) -> None:
    async with up(mesh_home) as first:
        before = mesh_home.state.read_bytes()
        with pytest.raises(FailedPrecondition, match="another supervisor"):
            await Supervisor(mesh_home, lambda kept: make_plan(mesh_home)).run()
        assert mesh_home.state.read_bytes() == before
        assert mesh_home.endpoints.exists()
        assert all(each.id is not None and each.id.alive() for each in first.state.processes)


async def test_two_homes_run_side_by_side(tmp_path: Path) -> None:
    one, two = Home(tmp_path / "one"), Home(tmp_path / "two")
    one.make()
    two.make()
    async with up(two) as second:
        async with up(one):
            pass
        assert all(each.stage is Stage.READY for each in second.state.processes)
        assert len(alive_of(two)) >= 4


async def test_process_that_fails_at_the_start_is_named_with_its_last_lines_and_all_is_stopped(mesh_home: Home) -> None:
    plan = make_plan(mesh_home, worker="echo one; echo the reason >&2; exit 3")
    with pytest.raises(StartFailed, match=r"worker ended with exit code 3(.|\n)*the reason"):
        await Supervisor(mesh_home, lambda kept: plan).run()
    final = state.read(mesh_home.state)
    assert final is not None
    assert final.phase is Phase.FAILED
    assert "the reason" in final.message
    assert alive_of(mesh_home) == []
    assert not mesh_home.endpoints.exists()


async def test_process_that_may_fail_at_the_start_is_tried_again(mesh_home: Home) -> None:
    count = mesh_home.root / "starts"
    script = f'echo x >> {count}; [ "$(wc -l < {count})" -ge 3 ] || exit 1; exec sleep 60'
    late = replace(program(mesh_home, "late", script), first_starts=3)

    async def has_started() -> bool:
        return count.exists() and len(count.read_text().splitlines()) == 3

    supervisor = Supervisor(mesh_home, lambda kept: Plan([Planned(replace(late, ready=has_started))], []))
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.state.phase is Phase.READY)
    assert supervisor.state.processes[0].stage is Stage.READY
    supervisor.stop()
    await task
    never = replace(late, arguments=("/bin/false",), first_starts=2)
    with pytest.raises(StartFailed, match="late ended with exit code 1"):
        await Supervisor(mesh_home, lambda kept: Plan([Planned(never)], [])).run()


async def test_process_that_never_gets_ready_ends_the_start(mesh_home: Home) -> None:
    slow = Planned(program(mesh_home, "slow", "sleep 60", ready_seconds=0.5))
    with pytest.raises(StartFailed, match="slow was not ready after"):
        await Supervisor(mesh_home, lambda kept: Plan([slow], [])).run()
    assert alive_of(mesh_home) == []


async def test_order_to_stop_ends_a_start_that_hangs(mesh_home: Home) -> None:
    supervisor = Supervisor(mesh_home, lambda kept: Plan([Planned(program(mesh_home, "slow", "sleep 60"))], []))
    task = asyncio.create_task(supervisor.run())
    await until(lambda: supervisor.state.processes and supervisor.state.processes[0].id is not None)
    supervisor.stop()
    await asyncio.wait_for(task, 5)
    assert alive_of(mesh_home) == []


async def test_stop_does_not_hang_on_a_swallowed_cancellation(mesh_home: Home) -> None:
    swallowed = 0

    async def never_ready() -> bool:
        nonlocal swallowed
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            swallowed += 1
            if swallowed > 1:
                raise
        return False

    plan = Plan([Planned(program(mesh_home, "slow", ready=never_ready, ready_seconds=60))], [])
    supervisor = Supervisor(mesh_home, lambda kept: plan)
    task = asyncio.create_task(supervisor.run())
    await until(lambda: (mesh_home.run / "slow.ready").exists())
    supervisor.stop()
    await asyncio.wait_for(task, 10)
    assert swallowed == 2
    assert alive_of(mesh_home) == []


async def test_stop_kills_who_does_not_listen_and_what_detached_itself(mesh_home: Home) -> None:
    deaf = 'trap "" TERM; touch "$2"; while :; do sleep 0.02; done'
    detaching = 'setsid sh -c "sleep 600" & sh -c "sleep 600" & touch "$2"; while :; do sleep 0.02; done'
    plan = Plan(
        [Planned(program(mesh_home, "base"))],
        [
            Planned(program(mesh_home, "deaf", deaf, stop_seconds=0.3)),
            Planned(program(mesh_home, "detaching", detaching)),
        ],
    )
    async with up(mesh_home, plan):
        await until(lambda: len(leftovers.detached(mesh_home.root, ())) >= 5)
    assert alive_of(mesh_home) == []
    final = state.read(mesh_home.state)
    assert final is not None
    assert [each.message for each in final.processes] == ["", "had to be killed", ""]


async def test_detached_process_lives_on_when_the_one_that_started_it_dies(mesh_home: Home) -> None:
    detaching = 'setsid sleep 601 & touch "$2"; while :; do sleep 0.02; done'
    async with up(mesh_home, Plan([], [Planned(program(mesh_home, "worker", detaching))])) as supervisor:
        worker = process_of(supervisor, "worker").id
        assert worker is not None
        await until(lambda: leaders_under(worker.pid))
        (training,) = leaders_under(worker.pid)
        os.kill(worker.pid, signal.SIGKILL)
        await until(lambda: process_of(supervisor, "worker").restarts == 1)
        await until(lambda: process_of(supervisor, "worker").stage is Stage.READY)
        assert procfs.identify(training) is not None
    assert alive_of(mesh_home) == []


def leaders_under(pid: int) -> list[int]:
    """The descendants of a process that lead a session of their own."""
    return [each for each in procfs.tree(pid)[1:] if each in procfs.session_members(each)]


def killed_supervisor(home: Home) -> MeshState:
    """The state after a supervisor in a process of its own came up and was killed with SIGKILL."""
    code = """
        import asyncio, runpy, sys
        from pathlib import Path
        from services.supervisor.group import Supervisor
        from services.supervisor.embedded import Home
        make_plan = runpy.run_path(sys.argv[2])["make_plan"]
        home = Home(Path(sys.argv[1]))
        asyncio.run(Supervisor(home, lambda kept: make_plan(home), keep={"ray"}).run())
    """
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code), str(home.root), __file__]) as supervisor:
        while (known := state.read(home.state)) is None or known.phase is not Phase.READY:
            assert supervisor.poll() is None
        supervisor.kill()
    return known


async def test_killed_supervisor_takes_all_along_but_ray_which_the_next_one_takes_over(mesh_home: Home) -> None:
    before = {each.name: each.id for each in killed_supervisor(mesh_home).processes}
    await until(lambda: [name for name, each in before.items() if each is not None and each.alive()] == ["ray"])
    async with up(mesh_home) as supervisor:
        ray = process_of(supervisor, "ray")
        assert ray.id == before["ray"]
        assert ray.adopted
        assert not process_of(supervisor, "base").adopted
        assert len({each.id for each in supervisor.state.processes} | set(before.values())) == 7
        assert ray.id is not None
        os.kill(ray.id.pid, signal.SIGKILL)
        await until(lambda: process_of(supervisor, "ray").restarts == 1)
        await until(lambda: process_of(supervisor, "ray").stage is Stage.READY)
        assert not process_of(supervisor, "ray").adopted
    assert alive_of(mesh_home) == []


async def test_ray_that_no_longer_answers_is_replaced(mesh_home: Home) -> None:
    before = {each.name: each.id for each in killed_supervisor(mesh_home).processes}
    (mesh_home.run / "ray.ready").unlink()
    async with up(mesh_home) as supervisor:
        assert before["ray"] is not None
        assert not before["ray"].alive()
        assert process_of(supervisor, "ray").stage is Stage.READY
        assert not process_of(supervisor, "ray").adopted


async def test_state_whose_pid_belongs_to_another_process_now_hurts_nobody(mesh_home: Home) -> None:
    with subprocess.Popen(["/bin/sleep", "600"], start_new_session=True) as stranger:  # noqa: ASYNC220
        real = procfs.identify(stranger.pid)
        assert real is not None
        stale = procfs.ProcessId(real.pid, real.start_ticks - 1)
        old = MeshState(stale, Phase.READY, processes=[ProcessState("base", Stage.READY, stale)])
        state.write(mesh_home.state, old)
        assert not old.alive()
        async with up(mesh_home):
            assert stranger.poll() is None
        assert await leftovers.end_all(mesh_home.root, old, 0.1) == []
        assert stranger.poll() is None
        stranger.kill()
