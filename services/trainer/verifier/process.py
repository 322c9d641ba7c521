"""The side process of a training run: loads, samples, scores and hashes each checkpoint while training goes on.

It reads one JSON line per request from its standard input and appends what it finds to the run's spool. The runner is
its parent: when the input ends without `{"finish": true}`, the runner is gone and this process leaves at once.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from services import rewards
from services.mesh.artifacts import Manifest
from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.runners.local import stop_requested
from services.mesh.runs.spool import Metrics, Problem, Sample, SampleBatch, Severity, SpoolWriter
from services.models import lineage
from services.models.probe import TOLERANCE, ask, difference
from services.rewards.spec import RewardSpec
from services.trainer.runs.records import Checkpoint
from services.trainer.training import launch_plan as plans
from services.trainer.training.tasks import RewardModelTask
from services.trainer.verifier.prompts import Question, read_questions, reward_for, score, summarise
from services.trainer.verifier.requests import CheckRequest, requests_from_parent
from services.trainer.verifier.reward_scoring import LocalScorer

if TYPE_CHECKING:
    from services.trainer.verifier.generate import Answerer
    from services.trainer.verifier.held_out_loss import HeldOut

# Below training, which must not wait for it, and above the idle class, which may never run.
NICENESS = 5
_POLL_SECONDS = 0.2
_CHECKPOINT_REMEDY = (
    "training goes on; take the checkpoint before it, or the next that is READY. Where every one is CORRUPT look"
    " whether the disk is full or failing, and whether the machine has memory for the model a second time"
)
_BASE_REMEDY = "training goes on without the answers of step 0; look whether the machine has memory for it twice"
_MEASURE_REMEDY = (
    "training goes on, and the checkpoint is none the worse; look whether the chat template takes the rows of the"
    " validation dataset, and whether the machine has memory"
)


def main(folder: Path) -> int:
    """Serve the attempt in `folder` until told to finish. The exit status is 0 when every request was handled."""
    os.nice(NICENESS)
    requests = requests_from_parent()
    # Slow imports, after the thread that notices the parent's death.
    import torch

    torch.set_num_threads(1)
    checker = Checker(plans.read(folder), SpoolWriter(folder / SPOOL_FILE))
    while (request := requests.get()) is not None:
        checker.handle(request)
    return 0


class Checker:
    def __init__(self, plan: plans.LaunchPlan, spool: SpoolWriter) -> None:
        self._plan = plan
        self._spool = spool
        self._questions: list[Question] | None = None
        self._judge: rewards.Judge | None = None
        self._waits_for = ""

    def handle(self, request: CheckRequest) -> None:
        """Answer one request; whatever goes wrong with the weights is said in the spool, not raised."""
        try:
            metrics = self._try_pairs(request) if request.kind == "reward" else self._sample(request)
            if request.checkpoint:
                self._report(request, "ready", metrics)
        except Exception as error:
            message = f"the weights of step {request.step} could not be used: {type(error).__name__}: {error}"
            remedy = _CHECKPOINT_REMEDY if request.checkpoint else _BASE_REMEDY
            reason = "WEIGHTS_UNUSABLE" if request.checkpoint else "VALIDATION_SKIPPED"
            self._say("error", reason, message, remedy, request.step, str(request.step))
            if request.checkpoint:
                self._report(request, "corrupt", {}, f"{type(error).__name__}: {error}")

    def _report(
        self, request: CheckRequest, state: Literal["ready", "corrupt"], metrics: dict[str, float], reason: str = ""
    ) -> None:
        manifest = Manifest.of_folder(Path(request.path)) if state == "ready" else None
        self._spool.append(
            Checkpoint(
                step=request.step,
                kind=request.kind,
                state=state,
                path=request.path,
                training_state_path=request.training_state_path,
                manifest_sha256=manifest.sha256 if manifest else "",
                size_bytes=manifest.size_bytes if manifest else 0,
                metrics=metrics,
                software=dict(lineage.software()),
                reason=reason,
            )
        )

    def _compared(self, request: CheckRequest, model: Any) -> dict[str, float]:
        """How far the saved weights are from those in training, by their answers. Raises ValueError: too far."""
        if request.probe is None:
            return {}
        # A reward model's is merged.
        if request.probe.adapter is not None and request.kind == "adapter":
            from services.models import adapter_sums

            adapter_sums.check(Path(request.path), request.probe.adapter)
        found = difference(request.probe.logprobs, ask(model), request.probe.dtype)
        allowed = TOLERANCE[request.probe.dtype]
        if not found <= allowed:
            raise ValueError(
                f"what was saved is not what was trained: an answer to the probe differs by {found:.2g}, more than the"
                f" {allowed:g} that rounding may make"
            )
        return {f"verification/{'score' if request.kind == 'reward' else 'logprob'}_difference": found}

    def _sample(self, request: CheckRequest) -> dict[str, float]:
        from services.trainer.verifier.generate import Answerer

        if request.sample and request.checkpoint:
            self._held_out.prepare()
        if request.kind == "adapter":
            answerer = Answerer(Path(request.path), Path(self._plan.model_path), self._plan.computes_in)
        else:
            # In a shorter type than it is stored in nobody uses it.
            stored = "auto" if self._plan.computes_in != "float32" else "float32"
            answerer = Answerer(Path(request.path), dtype=stored)
        compared = self._compared(request, answerer.model)
        answerer.merge_adapter()
        if not request.sample or self._plan.validation is None or self._plan.validation_path is None:
            return compared
        step = request.step
        values = {
            **self._tried("score of its answers", step, lambda: self._score(step, answerer)),
            **self._tried("held-out loss", step, lambda: self._take_loss(request, answerer)),
        }
        if values:
            self._spool.append(Metrics(step=step, values=values))
        return {**compared, **values}

    def _tried(self, what: str, step: int, measure: Callable[[], dict[str, float]]) -> dict[str, float]:
        """What is measured. Where that fails the weights are sound, they only have no value."""
        try:
            return measure()
        except rewards.RewardError as error:
            why, remedy = str(error), error.remedy
        except Exception as error:
            # Whatever a chat template raises, for one.
            why, remedy = f"{type(error).__name__}: {error}", _MEASURE_REMEDY
        self._say("error", "VALIDATION_SKIPPED", f"step {step} has no {what}: {why}", remedy, step, what)
        return {}

    @cached_property
    def _held_out(self) -> HeldOut:
        from services.trainer.verifier.held_out_loss import HeldOut

        return HeldOut(self._plan)

    def _take_loss(self, request: CheckRequest, answerer: Answerer) -> dict[str, float]:
        return self._held_out.measure(answerer.model, is_base=not request.checkpoint)

    def _try_pairs(self, request: CheckRequest) -> dict[str, float]:
        """A reward model is asked which answer of each pair is better."""
        from services.trainer.verifier import pair_scores

        scorer = pair_scores.RewardModelScorer(Path(request.path))
        compared = self._compared(request, scorer.model)
        task = self._plan.task
        assert isinstance(task, RewardModelTask)
        validation = task.validation
        if not request.sample or validation is None or self._plan.validation_path is None:
            return compared
        path, loss, step = Path(self._plan.validation_path), task.loss, request.step

        def measure() -> dict[str, float]:
            pairs = pair_scores.score_pairs(scorer, path, validation)
            samples = [sample for pair in pairs for sample in pair.samples()]
            self._spool.append(SampleBatch(step=step, split="validation", samples=samples))
            values = pair_scores.summarise(pairs, loss)
            self._spool.append(Metrics(step=step, values=values))
            return values

        return {**compared, **self._tried("score of its held-out pairs", step, measure)}

    def _fitting(
        self, questions: list[Question], answerer: Answerer, validation: plans.ValidationPlan
    ) -> list[Question]:
        """Those that can be answered; of the others is said how many there are, and why the first is none."""
        too_long = (
            f"prompt and {validation.max_new_tokens} new tokens do not fit the model's context of"
            f" {answerer.context_length}",
            "lower validation.max_new_tokens",
        )
        fitting: list[Question] = []
        left_out: list[tuple[str, str]] = []
        for question in questions:
            try:
                if not question.messages:
                    left_out.append(("there is nothing before the answer", "give the conversation a question"))
                elif answerer.fits(question, validation):
                    fitting.append(question)
                else:
                    left_out.append(too_long)
            except Exception as error:
                # Whatever a chat template raises.
                left_out.append((f"{type(error).__name__}: {error}", "give the row the roles that the template takes"))
        if left_out:
            why, remedy = left_out[0]
            message = f"{len(left_out)} of {len(questions)} validation rows are not answered: {why}"
            self._say("warning", "VALIDATION_ROWS_LEFT_OUT" if fitting else "VALIDATION_SKIPPED", message, remedy)
        return fitting

    def _score(self, step: int, answerer: Answerer) -> dict[str, float]:
        """The metrics of the answers; none of those that are only there to be read."""
        validation = self._plan.validation
        assert validation is not None and self._plan.validation_path is not None
        if self._questions is None:
            found = read_questions(Path(self._plan.validation_path), validation.rows)
            self._questions = self._fitting(found, answerer, validation)
        questions, reward = self._questions, reward_for(self._questions, validation.reward)
        scores, done = [], 0
        for completions in answerer.answer(questions, validation, seed=self._plan.seed + step):
            batch = questions[done : done + len(completions)]
            done += len(completions)
            batch_scores = self._judged(batch, completions, reward) if reward else [None] * len(batch)
            scores.extend(batch_scores)
            samples = [
                Sample(
                    row_index=question.row_index,
                    prompt=question.messages[-1]["content"],
                    completion=completion,
                    expected=question.expected,
                    score=float("nan") if one is None else one.score,
                    parts={} if one is None else dict(one.parts),
                )
                for question, completion, one in zip(batch, completions, batch_scores, strict=True)
            ]
            self._spool.append(SampleBatch(step=step, split="validation", samples=samples))
        return summarise(scores) if reward else {}

    def _judged(
        self, questions: list[Question], completions: list[str], reward: RewardSpec
    ) -> list[rewards.Score | None]:
        if self._judge is None:
            surroundings = rewards.RewardContext(self._plan.reward_site, self._wait, self._check, LocalScorer)
            self._judge = rewards.open_judge(reward.name, reward.params, surroundings)
        return score(questions, completions, self._judge, rewards.needs_answer(reward.name, reward.params))

    def _wait(self, why: str, seconds: float) -> None:
        """For a judge that is away; until the run is told to stop, or its process is gone."""
        if self._waits_for != why:
            self._waits_for = why
            remedy = "it goes on by itself once the judge answers; training goes on meanwhile"
            self._say("warning", "VALIDATION_WAITING", f"the validation waits: {why}", remedy)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self._check()
            time.sleep(min(seconds, _POLL_SECONDS))

    def _say(self, severity: Severity, reason: str, message: str, remedy: str, step: int = 0, key: str = "") -> None:
        self._spool.append(
            Problem(severity=severity, reason=reason, message=message, remedy=remedy, step=step, key=key)
        )

    def _check(self) -> None:
        if stop_requested(Path(self._plan.work_dir)):
            raise rewards.RewardError("the run is to stop", reason="REWARD_UNAVAILABLE")
