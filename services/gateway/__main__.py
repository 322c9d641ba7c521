"""`python -m services.gateway`: runs until SIGTERM."""

from __future__ import annotations

import logging
import sys

import uvloop

from services.gateway.app import build
from services.gateway.settings import GatewaySettings
from services.mesh.errors import PlatformError
from services.mesh.settings import Environment
from services.mesh.telemetry.logs import configure_logging


async def main() -> None:
    await build(GatewaySettings.read(Environment())).run()


if __name__ == "__main__":
    configure_logging("gateway")
    try:
        uvloop.run(main())
    except PlatformError as error:
        logging.getLogger("services.gateway").error("cannot start: %s", error)
        sys.exit(1)
