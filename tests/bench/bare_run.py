"""verl as the platform's runner drives it, with nothing around it: `python -m tests.bench.bare_run FOLDER`.

The same plan, configuration, plugin, rows and trainers on a Ray of its own. There is no spool, no control file, no side
process and no worker that follows: verl's logger is called as ever and notes the time, which goes to `steps.json`.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from services.supervisor.embedded.ray_head import default_resources
from services.trainer.training import launch_plan as plans
from services.trainer.training.tasks import SftTask
from services.trainer.verl import environment
from services.trainer.verl.patches import hooks


class Reporter:
    """Where the platform has its StepReporter and its publisher."""

    def __init__(self) -> None:
        self.times_ns: list[int] = []
        self.last_step = 0
        self.stopped = False

    def log(self, data: object, step: int, **_: object) -> None:
        self.times_ns.append(time.time_ns())
        self.last_step = step

    def finish(self, exit_code: int = 0) -> None:
        pass

    def stop_requested(self) -> bool:
        return False

    def nothing(self, *_: object, **__: object) -> None:
        pass

    # Of the reporter, the publisher and the spool.
    add = publish = append = nothing


def main(folder: Path) -> None:
    plan = plans.read(folder)
    with tempfile.TemporaryDirectory() as rendezvous:
        variables = environment.variables(plan.device) | environment.of_one_run(
            rendezvous, folder, dropout=isinstance(plan.task, SftTask)
        )
        import ray

        runtime = {"env_vars": variables, "worker_process_setup_hook": environment.SETUP_HOOK}
        # As many logical CPUs as `rlhf up` gives: verl asks for ten a slot.
        cpus = default_resources(plan.slots).cpus
        # Before the environment says that there is no GPU, which makes Ray refuse logical ones.
        ray.init(num_cpus=cpus, num_gpus=plan.slots, include_dashboard=False, runtime_env=runtime)
        environment.apply(variables)
        hooks.install_common()
        from services.trainer.verl.context import RunContext
        from services.trainer.verl.trainers import rl, sft

        silent: Any = Reporter()
        (sft if isinstance(plan.task, SftTask) else rl).train(RunContext(plan, silent, silent, silent))
        ray.shutdown()
    (folder / "steps.json").write_text(json.dumps(silent.times_ns))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
