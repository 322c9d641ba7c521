"""`python -m services.cli.supervisor`: the process behind `rlhf up`. Settings come from the environment."""

from __future__ import annotations

import asyncio
import functools
import sys

from services.cli.supervisor import mesh
from services.cli.supervisor.group import Supervisor
from services.mesh.embedded import Home
from services.mesh.errors import PlatformError
from services.mesh.settings import Environment, default_home, member_environment
from services.mesh.telemetry import configure_logging


def make() -> Supervisor:
    """The supervisor of the home that the environment names. Raises InvalidArgument when a setting is wrong."""
    environment = Environment()
    home = Home(default_home(environment).resolve())
    options = mesh.Options.read(environment)
    home.make()
    return Supervisor(home, functools.partial(mesh.build, home, options, member_environment()), mesh.KEEP)


def main() -> int:
    """Exit code 1 when the mesh did not come up; `run/state.json` says why."""
    configure_logging("supervisor")
    try:
        asyncio.run(make().run())
    except PlatformError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
