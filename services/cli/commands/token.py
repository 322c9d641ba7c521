"""`rlhf token`: what opens the mesh of this home, and another in its place."""

from __future__ import annotations

import signal
import sys
import time

import typer

from services.cli import output
from services.cli.session import options_of
from services.mesh import catalog, identity
from services.mesh.errors import FailedPrecondition, NotFound, Unavailable
from services.mesh.processes import procfs
from services.supervisor import state
from services.supervisor.embedded.home import Home
from services.supervisor.state import MeshState, Phase, ProcessState, Stage

app = typer.Typer()

# They read the token when they start.
_READERS = (*catalog.SERVICES, "trainer.worker", "gateway")
_RESTART_SECONDS = 120.0
_POLL_SECONDS = 0.05


@app.callback(invoke_without_command=True)
def show(context: typer.Context) -> None:
    """Print the token of this home's mesh: the web page and other clients sign in with it.

    - `rlhf token`
    - `rlhf token rotate` replaces it
    """
    if context.invoked_subcommand is None:
        sys.stdout.write(f"{identity.read_token(Home(options_of(context).home.resolve()).token)}\n")


@app.command()
def rotate(context: typer.Context) -> None:
    """Put another token in the place of this home's: nothing is opened by the old one any more.

    Where the mesh is up, its services are started again with the new one, which takes some seconds and cuts off
    whoever is connected. Trainings go on. Sign in again on the web page, and hand the new token to clients elsewhere.

    - `rlhf token rotate`
    """
    home = Home(options_of(context).home.resolve())
    if not home.token.exists():
        raise NotFound("NO_TOKEN", f"there is no token in {home.root} yet: `rlhf up` makes one")
    known = state.read(home.state)
    if known is None or not known.alive():
        identity.rotate_token(home.token)
        output.say("the token is another one: `rlhf token` shows it, the next `rlhf up` takes it", style="green")
        return
    if known.phase is not Phase.READY:
        message = f"the mesh is {known.phase}: wait until `rlhf status` says that it is up, or down"
        raise FailedPrecondition("MESH_NOT_READY", message)
    identity.rotate_token(home.token)
    restart(home, known)
    output.say("the token is another one: `rlhf token` shows it; the old one opens nothing any more", style="green")


def restart(home: Home, known: MeshState) -> None:
    """Have the supervisor start those again that know the token. Raises Unavailable where one does not come back."""
    before = {each.name: each for each in known.processes if each.name in _READERS}
    # One that is just being started again may have read the old token, and is waited for first.
    current = {name: _ready(home, name, None) for name in before}
    for each in current.values():
        if each.id is not None and each.id.alive():
            procfs.kill([each.id.pid], signal.SIGTERM)
    for name, old in current.items():
        _ready(home, name, old)
        output.say(f"  {name:<16} started again")


def _ready(home: Home, name: str, old: ProcessState | None) -> ProcessState:
    """The state of a process once it is ready, in another incarnation than `old`."""
    deadline = time.monotonic() + _RESTART_SECONDS
    while time.monotonic() < deadline:
        known = state.read(home.state)
        if known is None or not known.alive():
            raise Unavailable("MESH_NOT_UP", "the mesh has ended meanwhile; the next `rlhf up` takes the new token")
        found = next((each for each in known.processes if each.name == name), None)
        if found is not None and found.stage is Stage.READY and (old is None or found.id != old.id):
            return found
        time.sleep(_POLL_SECONDS)
    message = f"{name} did not come back: see {home.log(name)}; `rlhf down && rlhf up` applies the new token"
    raise Unavailable("NOT_STARTED_AGAIN", message)
