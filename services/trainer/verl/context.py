"""What a trainer of ours needs besides verl: the plan, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass

from services.mesh.runs.spool import Phase, Problem, SpoolWriter
from services.trainer.runs.health import LEFT_OUT_SHARE
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.verl.checkpoints import CheckpointPublisher
from services.trainer.verl.reporting import StepReporter


@dataclass(frozen=True)
class RunContext:
    plan: LaunchPlan
    spool: SpoolWriter
    reporter: StepReporter
    publisher: CheckpointPublisher

    def training_begins(self) -> None:
        done = self.plan.start_step
        self.spool.append(Phase(phase="training", step=done, total_steps=self.plan.total_steps))

    def wait(self, phase: str) -> None:
        """Say what the run waits for. Called again and again meanwhile, which tells its worker that it still does."""
        self.spool.append(Phase(phase=phase, step=self.reporter.last_step, total_steps=self.plan.total_steps))

    def report_left_out(self, left_out: int, rows: int, refused: str = "") -> None:
        """Say that rows are too long to be trained on; or that the chat template refuses them, and what it says."""
        if refused:
            message = f"the chat template refuses {left_out} of {rows} training rows, which are left out: {refused}"
            remedy = "give the rows the roles that the template takes, or the model another chat_template.jinja"
            key = "chat_template"
        else:
            limit = self.plan.max_tokens
            message = f"{left_out} of {rows} training rows are longer than {limit} tokens and are left out"
            key = self.plan.task.max_tokens_param
            remedy = f"raise {key}"
        severity = "warning" if left_out > LEFT_OUT_SHARE * rows else "info"
        # The same reason and key as in training/data_forecast.py, which tells it before the start.
        problem = Problem(severity=severity, reason="ROWS_LEFT_OUT", key=key, message=message, remedy=remedy)
        self.spool.append(problem)

    def warn(self, message: str, remedy: str) -> None:
        """Say what of the rows is trained otherwise than its user may think."""
        self.spool.append(Problem(severity="warning", reason="ROWS_CHANGED", message=message, remedy=remedy))
