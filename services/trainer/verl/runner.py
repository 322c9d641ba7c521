"""The runner: carries out the launch plan of one attempt.

    python -m services.trainer.verl.runner <attempt folder>

It is the driver of a Ray job of its own: when it dies, Ray takes down every process of that job and of no other. All it
has to say goes to the attempt's spool; the last record is End, and a runner that has gone without one has crashed.
`main` may also be called in a process forked from one that has imported verl already.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.process import Control, StopRequestedError, identify
from services.mesh.runs.spans import TracedSpool
from services.mesh.runs.spool import End, Phase, Problem, Software, SpoolWriter
from services.models import lineage
from services.trainer.training import launch_plan as plans
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.training.tasks import SftTask, Task
from services.trainer.verl import environment, stacks
from services.trainer.verl.failures import explain
from services.trainer.verl.patches import hooks

if TYPE_CHECKING:
    from services.trainer.verl.context import RunContext
    from services.trainer.verl.reporting import StepReporter


# How long the last record may wait for room on the disk. A run that ends without it counts as one that died.
LAST_WORD_SECONDS = 300.0


def main(folder: Path) -> int:
    """Run the attempt in `folder`. 0 when an End record was written, whatever the outcome."""
    folder = folder.resolve()
    identify(folder)
    spool = TracedSpool(folder / SPOOL_FILE)
    try:
        spool.append(Phase(phase="starting"))
        spool.append(Software(versions=dict(lineage.software())))
        plan = plans.read(folder)
        spool.begin(plan.traceparent, plan.span_attributes)
        with tempfile.TemporaryDirectory(prefix="rlhf-rendezvous-", ignore_cleanup_errors=True) as rendezvous:
            own = environment.of_one_run(rendezvous, folder, dropout=isinstance(plan.task, SftTask))
            variables = environment.variables(plan.device) | own
            # verl reads it when it is imported, which is why the imports of this file stop short of verl.
            environment.apply(variables)
            # Before anything imports the queue.
            hooks.install_common()
            is_left = plan.start_step < plan.total_steps
            end = _run(folder, plan, spool, variables) if is_left else _nothing_left(plan.start_step, spool)
    except BaseException as error:
        end = _failed(error, 0)
    spool.append(end)
    status = 0 if spool.drain(LAST_WORD_SECONDS) else 1
    ray: Any = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        # It could not be left, see process_watch.py, and would now wait for what is lost.
        os._exit(status)
    return status


def _run(folder: Path, plan: LaunchPlan, spool: SpoolWriter, variables: dict[str, str]) -> End:
    from services.trainer.verl.checkpoints import CheckpointPublisher
    from services.trainer.verl.context import RunContext
    from services.trainer.verl.reporting import StepReporter
    from services.trainer.verl.verification.side_process import SideProcess

    control = Control(folder)
    side = SideProcess(folder, spool)
    reporter = StepReporter(plan, spool, control)
    reporter.take_up()
    publisher = CheckpointPublisher(plan, spool, side)

    def verify() -> None:
        spool.append(Phase(phase="verifying", step=reporter.last_step, total_steps=plan.total_steps))
        side.finish()

    # Taken for good by who ends the run: the training, or who watches it. The other may come to its end meanwhile.
    ending = threading.Lock()

    def give_up(loss: Exception) -> None:
        """Of a training that does not come back from what it waits for: keep its stacks, and end as it would have."""
        if not ending.acquire(blocking=False):
            return
        stacks.write(folder)
        verify()
        spool.append(_failed(loss, reporter.last_step))
        os._exit(0 if spool.drain(LAST_WORD_SECONDS) else 1)

    failure: End | None = None
    try:
        _train(RunContext(plan, spool, reporter, publisher), control, variables, give_up)
    except StopRequestedError:
        if reporter.last_step == plan.start_step:
            failure = End(outcome="stopped", step=plan.start_step, reason="STOP_REQUESTED")
    except BaseException as error:
        failure = _failed(error, reporter.last_step)
    ending.acquire()
    if failure is None or failure.outcome != "stopped":
        verify()
    return failure or _outcome(plan, spool, reporter, side.doubt(publisher.last_step))


def _nothing_left(step: int, spool: SpoolWriter) -> End:
    message = f"step {step} was the last; nothing is left to train"
    spool.append(Problem(severity="info", reason="NOTHING_LEFT", message=message, step=step))
    return End(outcome="succeeded", step=step)


def _failed(error: BaseException, step: int) -> End:
    why = explain(error)
    return End(
        outcome="failed",
        step=step,
        reason=why.reason,
        message=why.message,
        remedy=why.remedy,
        traceback=why.traceback,
    )


def _train(
    context: RunContext, control: Control, variables: dict[str, str], give_up: Callable[[Exception], None]
) -> None:
    """`give_up` is called by another thread where this one waits without end for something that is lost."""
    from services.trainer.verl import placement
    from services.trainer.verl.process_watch import watched
    from services.trainer.verl.ray_connection import connect

    plan: LaunchPlan = context.plan
    runtime = {"env_vars": variables, "worker_process_setup_hook": environment.SETUP_HOOK}
    connect(plan, runtime, control, lambda: context.wait("waiting_for_ray"))
    with watched(Path(plan.work_dir), give_up):
        control.catch_termination()
        groups = placement.reserve(plan.slots, plan.device, control, lambda: context.wait("waiting_for_slots"))
        context.spool.append(Phase(phase="loading", step=plan.start_step, total_steps=plan.total_steps))
        placement.hand_to_verl(groups)
        _trainer(plan.task)(context)


def _trainer(task: Task) -> Callable[[RunContext], None]:
    """What carries out the task. Imported only now: each imports half of verl."""
    module, _, function = task.trainer.partition(":")
    return getattr(importlib.import_module(f"services.trainer.verl.trainers.{module}"), function)


def _outcome(plan: LaunchPlan, spool: SpoolWriter, reporter: StepReporter, doubt: str | None) -> End:
    """A run has failed that took no step, too few, learnt nothing, or whose last weights nobody may start from; verl
    says none of it. `doubt` is what was found wrong with the weights.
    """
    last_step = reporter.last_step
    if reporter.stopped:
        return End(outcome="stopped", step=last_step, reason="STOP_REQUESTED")
    if last_step <= plan.start_step:
        return End(outcome="failed", step=last_step, reason="NO_STEPS", message="the run ended without a step")
    if last_step != plan.total_steps:
        message = f"the run ended after step {last_step} of {plan.total_steps}"
        return End(outcome="failed", step=last_step, reason="STEPS_MISSING", message=message)
    if doubt is not None:
        message = f"training came to its end, but the weights of step {last_step} could not be confirmed: {doubt}"
        remedy = (
            f"they are kept: look at them with `rlhf checkpoint download JOB/step-{last_step} --allow-corrupt`; or go"
            " on from the newest checkpoint that is READY"
        )
        return End(outcome="failed", step=last_step, reason="CHECKPOINT_CORRUPT", message=message, remedy=remedy)
    if found := reporter.nothing_learnt():
        said = {"step": last_step, "reason": "NOTHING_LEARNT", "message": found.message, "remedy": found.remedy}
        if found.certain:
            return End(outcome="failed", **said)
        spool.append(Problem(severity="warning", **said))
    return End(outcome="succeeded", step=last_step)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
