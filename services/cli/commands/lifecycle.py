"""`rlhf up`, `down` and `status`."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.cli import display, exit_codes, output
from services.cli.session import options_of
from services.cli.startup_view import narrate_start, narrate_stop
from services.mesh.errors import PlatformError
from services.mesh.processes import procfs
from services.mesh.settings import member_environment
from services.supervisor import leftovers, state
from services.supervisor.embedded.home import Home
from services.supervisor.embedded.process import log_tail
from services.supervisor.state import MeshState, Phase, ProcessState, Stage

if TYPE_CHECKING:
    from services.supervisor.settings import Difference

# Longer than all grace periods in a row.
_STOP_SECONDS = 180.0


def register(app: typer.Typer) -> None:
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)


def up(
    context: typer.Context,
    foreground: Annotated[
        bool, typer.Option("--foreground", help="Stay in front until Ctrl-C or SIGTERM, as a container wants it.")
    ] = False,
) -> None:
    """Bring the mesh up: PostgreSQL, NATS, Ray and the services.

    It goes on in the background. Logs are in `run/logs` of the home; `rlhf down` stops it.

    Where it is up already, nothing is changed; the exit code is 1 where it was asked for with other settings.
    """
    from services.supervisor import settings

    home = _home(context)
    given = settings.check(member_environment())
    for note in given.notes:
        output.say(f"note: {note}", style="yellow")
    if (known := state.read(home.state)) is not None and known.alive() and known.phase is Phase.READY:
        output.say(f"the mesh is up already (home {home.root})")
        _show_address(home)
        if _tell_differences(given.differences(settings.running(home))):
            raise typer.Exit(exit_codes.FAILED)
        return
    home.make()
    if foreground:
        asyncio.run(_in_front(home))
        return
    process = start_supervisor(home)
    try:
        final = narrate_start(home, process)
    except KeyboardInterrupt:
        process.terminate()
        process.wait(_STOP_SECONDS)
        raise
    if final is None or final.phase is not Phase.READY:
        output.say(f"the mesh did not come up: {_why(home, final)}", style="red")
        raise typer.Exit(exit_codes.FAILED)
    output.say(f"ready after {final.seconds:.1f} s", style="bold green")
    _show_address(home)


def start_supervisor(home: Home) -> subprocess.Popen[bytes]:
    """In a session of its own, so that it outlives the terminal."""
    home.log("supervisor").touch(mode=0o600)
    with home.log("supervisor").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "services.supervisor"],
            env=member_environment(RLHF_HOME=str(home.root)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _tell_differences(differences: Sequence[Difference]) -> bool:
    """Show which settings the mesh that runs does not have. True where one was asked for that it does not run with."""
    if not differences:
        return False
    output.say("it does not run with the settings of this shell:", style="yellow")
    output.messages().print(output.table(_DIFFERENCES, differences))
    output.say("`rlhf down && rlhf up` applies these; data stays, trainings go on from their last checkpoint")
    return any(each.asked for each in differences)


async def _in_front(home: Home) -> None:
    from services.mesh.telemetry.logs import configure_logging
    from services.supervisor.__main__ import make

    configure_logging("supervisor", logging.WARNING)
    supervisor = make()
    narration = asyncio.create_task(asyncio.to_thread(narrate_start, home))
    narration.add_done_callback(lambda _: home.endpoints.exists() and _show_address(home))
    try:
        await supervisor.run()
    except PlatformError as error:
        output.say(f"the mesh did not come up: {error.message}", style="red")
        raise typer.Exit(exit_codes.FAILED) from None


def _why(home: Home, final: MeshState | None) -> str:
    if final is not None and final.message:
        return final.message
    return f"the supervisor ended\n{log_tail(home.log('supervisor'))}"


def _show_address(home: Home) -> None:
    try:
        endpoints = json.loads(home.endpoints.read_text())
    except (OSError, ValueError):
        return
    http = f"{endpoints['http']}  (open it in a browser; `rlhf token` signs you in)"
    facts = [("HTTP", http), ("gRPC", endpoints["grpc"]), ("token", str(home.token))]
    output.messages().print(output.grid(facts))


def down(
    context: typer.Context,
    force: Annotated[bool, typer.Option("--force", help="Kill everything at once; the data survives it.")] = False,
) -> None:
    """Stop the mesh, trainings included, and leave no process behind. The data stays."""
    home = _home(context)
    known = state.read(home.state)
    if known is None or not (known.alive() or leftovers.find(known) or leftovers.detached(home.root, ())):
        output.say(f"the mesh is not up (home {home.root})")
        home.remove_temporary()
        return
    if known.alive() and not force:
        os.kill(known.supervisor.pid, signal.SIGTERM)
        if not narrate_stop(home, known.supervisor, _STOP_SECONDS):
            output.say("it still has not stopped; `rlhf down --force` kills it", style="red")
            raise typer.Exit(exit_codes.FAILED)
    else:
        if known.alive():
            procfs.kill([known.supervisor.pid])
        for name in asyncio.run(leftovers.end_all(home.root, known, 0.0 if force else 10.0)):
            output.say(f"  {name} ended")
        home.remove_temporary()
    home.endpoints.unlink(missing_ok=True)
    output.say("the mesh is down")


def status(context: typer.Context, format: output.DocumentOption = "table") -> None:
    """Show the processes of the mesh. Exit code 0 when it is up, 3 when it is not."""
    home = _home(context)
    known = state.read(home.state)
    is_up = known is not None and known.alive() and known.phase is Phase.READY
    if format == "json":
        output.write_json(_document(home, known, is_up))
    elif known is not None and (known.alive() or leftovers.find(known)):
        output.say(f"the mesh is {_phase(known)} (home {home.root})", style="green" if is_up else "yellow")
        output.data().print(output.table(_COLUMNS, known.processes))
        if is_up:
            _show_address(home)
    else:
        output.say(f"the mesh is not up (home {home.root}): start it with `rlhf up`")
    if not is_up:
        raise typer.Exit(exit_codes.NOT_UP)


def _phase(known: MeshState) -> str:
    if not known.alive():
        return "without its supervisor: `rlhf up` takes over what is left"
    return {Phase.READY: "up"}.get(known.phase, str(known.phase))


def _document(home: Home, known: MeshState | None, is_up: bool) -> dict[str, Any]:
    endpoints: dict[str, Any] = {}
    if is_up:
        endpoints = json.loads(home.endpoints.read_text())
    return {
        "up": is_up,
        "phase": str(known.phase) if known is not None and known.alive() else "stopped",
        "home": str(home.root),
        "http": endpoints.get("http", ""),
        "grpc": endpoints.get("grpc", ""),
        "processes": [_process_document(each) for each in (known.processes if known is not None else [])],
    }


def _process_document(process: ProcessState) -> dict[str, Any]:
    return {
        "name": process.name,
        "state": str(_stage(process)),
        "pid": _pid(process),
        "restarts": process.restarts,
        "memoryBytes": _memory(process),
        "address": process.address,
        "message": process.message,
    }


def _stage(process: ProcessState) -> Stage:
    """What the supervisor wrote may be older than a kill -9 of it."""
    return process.stage if process.id is None or process.id.alive() else Stage.STOPPED


def _pid(process: ProcessState) -> int:
    return process.id.pid if process.id is not None and process.id.alive() else 0


def _memory(process: ProcessState) -> int:
    return procfs.memory_bytes(procfs.tree(pid)) if (pid := _pid(process)) else 0


_COLUMNS = (
    output.Column("process", lambda each: each.name),
    output.Column("state", lambda each: str(_stage(each))),
    output.Column("pid", lambda each: str(_pid(each) or ""), right=True),
    output.Column("restarts", lambda each: str(each.restarts), right=True),
    output.Column("memory", lambda each: display.size(_memory(each)) if _pid(each) else "", right=True),
    output.Column("address", lambda each: each.address),
)


_DIFFERENCES = (
    output.Column("setting", lambda each: each.name),
    output.Column("runs with", lambda each: each.running or "not set"),
    output.Column("here", lambda each: each.asked or "not set"),
)


def _home(context: typer.Context) -> Home:
    return Home(options_of(context).home.resolve())
