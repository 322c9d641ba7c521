"""A second place to run, as the file that adds one would be: on this host too, with the least of the processor."""

from __future__ import annotations

import os
from collections.abc import Mapping

from services.mesh.runs.runners import runners
from services.mesh.runs.runners.local import LocalRun


class NiceRun(LocalRun):
    """As a run on this host, at the lowest priority."""

    def _spawn(self, environment: Mapping[str, str]) -> None:
        super()._spawn(environment)
        assert self._process is not None
        os.setpriority(os.PRIO_PROCESS, self._process.pid, 19)


runners.register("nice")(NiceRun)
