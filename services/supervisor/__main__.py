"""`python -m services.supervisor`: the process behind `rlhf up`. Settings come from the environment."""

from __future__ import annotations

import asyncio
import functools
import sys

from services.mesh.errors import PlatformError
from services.mesh.settings import Environment, default_home, member_environment
from services.mesh.telemetry.logs import configure_logging
from services.supervisor import mesh_plan
from services.supervisor.embedded import Home
from services.supervisor.group import Supervisor


def make() -> Supervisor:
    """The supervisor of the home that the environment names. Raises InvalidArgument when a setting is wrong."""
    environment = Environment()
    home = Home(default_home(environment).resolve())
    options = mesh_plan.Options.read(environment)
    home.make()
    return Supervisor(home, functools.partial(mesh_plan.build, home, options, member_environment()), mesh_plan.KEEP)


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
