"""`rlhf demo`: the whole path, from a generated file to a model that is better than before, and how sure that is."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.cli import datasets, display, exits, job_views, jobs, models, output, train, uploading, watching
from services.cli.session import Options, Session, find, options_of, with_session
from services.mesh.errors import PlatformError

if TYPE_CHECKING:
    from services.cli.demo.measuring import Measurement
    from services.cli.demo.settings import Settings


def register(app: typer.Typer) -> None:
    app.command()(demo)


def demo(
    context: typer.Context,
    model: Annotated[
        Literal["digits", "smollm2"],
        typer.Option(help="digits: a small model from scratch; smollm2: LoRA on SmolLM2-135M-Instruct."),
    ] = "digits",
    short: Annotated[bool, typer.Option("--short", help="Few steps, for tests: shows that it runs, no gain.")] = False,
    seed: Annotated[int, typer.Option(help="Of the problems and of the weights.", min=0)] = 0,
    compare: Annotated[
        bool, typer.Option("--compare", help="Also go on with SFT for the time that GRPO took, and compare.")
    ] = False,
    keep_up: Annotated[bool, typer.Option("--keep-up", help="Leave the mesh up that the demo has started.")] = False,
) -> None:
    """Train a small model from scratch with SFT and then GRPO, and measure on problems that it has never seen.

    The task is to sort the digits of a number. Everything goes through the same calls that every command makes:
    three generated files are uploaded, a model is made, two jobs train it on verl and Ray. The exit code is 1 unless
    GRPO's gain over SFT is beyond the 95% intervals of both.

    Examples:

    - `rlhf demo`
    - `rlhf demo --seed 1 --compare`
    - `rlhf demo --model smollm2`
    """
    started = time.monotonic()
    options = options_of(context)
    was_up = ensure_up(options)
    try:
        if model == "smollm2":
            from services.cli.demo import chat

            succeeded = asyncio.run(with_session(options, lambda session: chat.run(session, seed, short)))
        else:
            succeeded = asyncio.run(with_session(options, lambda session: _digits(session, seed, short, compare)))
        output.say(f"all of it took {display.duration(time.monotonic() - started)}")
    finally:
        if not was_up and not keep_up:
            output.hint("taking the mesh down; what was made stays, and `rlhf up` brings it back")
            _rlhf("down")
    if not succeeded:
        raise typer.Exit(exits.FAILED)


def ensure_up(options: Options) -> bool:
    """Bring the mesh up where it is not; whether it was. Raises typer.Exit where that fails."""

    async def ask(session: Session) -> None:
        await jobs.find_jobs(session, [], 1)

    try:
        asyncio.run(with_session(options, ask))
        return True
    except PlatformError as error:
        if error.code != "UNAVAILABLE" or options.server:
            raise
    code = _rlhf("up")
    if code != exits.OK:
        raise typer.Exit(code)
    find(options)
    return False


def _rlhf(command: str) -> int:
    """Run one of our own commands, its output shown; its exit code."""
    return subprocess.run([sys.executable, "-m", "services.cli", command], check=False).returncode  # noqa: S603


@dataclass(frozen=True)
class Trained:
    """A job that has succeeded."""

    name: str
    steps: int


async def _digits(session: Session, seed: int, short: bool, compare: bool) -> bool:
    """Whether GRPO's gain is beyond the intervals, where that is asked for."""
    from services.cli.demo import measuring, report
    from services.cli.demo.settings import FULL, SHORT

    settings = SHORT if short else FULL
    run_id = train.new_id("demo")
    questions = await _prepare(session, settings, seed, run_id)
    data, held_out = f"{run_id}-examples", f"{run_id}-held-out"
    sft = await train_on(session, "sft", run_id, data, held_out, settings.params({**settings.sft, "seed": seed}))
    grpo = await train_on(
        session, "grpo", sft.name, f"{run_id}-prompts", held_out, settings.params({**settings.grpo, "seed": seed})
    )
    found = [
        await measuring.measured(session, sft.name, 0, "untrained", questions),
        await measuring.measured(session, sft.name, sft.steps, "after SFT", questions),
        await measuring.measured(session, grpo.name, grpo.steps, "after GRPO", questions),
    ]
    if compare:
        longer = await _longer_sft(session, settings, seed, sft, grpo, data, held_out)
        found.append(await measuring.measured(session, longer.name, longer.steps, "more SFT instead", questions))
    output.data().print()
    output.data().print(report.accuracy_table(found))
    output.data().print()
    output.data().print(report.answers_table(found, 8))
    output.data().print()
    _say_where(sft, grpo)
    return _judge(settings, found)


async def _prepare(session: Session, settings: Settings, seed: int, run_id: str) -> list[str]:
    """Generate and upload the three sets, make the model; the held-out questions by row."""
    from rlhf.trainer.v1.model_pb2 import ModelSource

    from services.cli.demo import measuring, problems

    sizes = settings.sizes
    folder = session.options.home / "demo" / run_id
    files = await asyncio.to_thread(problems.write, seed, sizes, folder)
    _title(f"Sorting the digits of numbers with {sizes.digits} digits (seed {seed}, no number in two sets)")
    output.say(f"{sizes.examples} clean examples, {sizes.prompts} prompts, {sizes.held_out} held out: {folder}")
    for file, kind, name in (
        (files.examples, "messages", "examples"),
        (files.prompts, "prompt", "prompts"),
        (files.held_out, "prompt", "held-out"),
    ):
        await upload(session, f"{run_id}-{name}", kind, file)
    source = ModelSource()
    source.init.config.update(settings.config)
    source.init.characters.alphabet, source.init.seed = problems.ALPHABET, seed
    made = await models.importing(session, run_id, source, {}, wait=True)
    if models.failed(made):
        output.say(made.error.message)
        raise typer.Exit(exits.FAILED)
    output.say(f"a {made.architecture} from scratch, {made.parameter_count:,} weights: {run_id}")
    return await asyncio.to_thread(measuring.questions, files.held_out)


async def upload(session: Session, name: str, row_format: str, file: Path) -> None:
    """Raises typer.Exit where the file was not taken."""
    from services.cli import dataset_views

    dataset = await datasets.ensure(session, f"{session.project}/datasets/{name}", row_format, {})
    done = await uploading.upload(session, dataset.name, file)
    if done.state != done.STATE_SUCCEEDED:
        dataset_views.show_upload(done, "table")
        raise typer.Exit(exits.FAILED)
    output.hint(f"uploaded {name}: {done.report.row_count} rows of format {row_format}")


async def train_on(
    session: Session, algorithm: str, model: str, data: str, held_out: str, params: dict[str, Any]
) -> Trained:
    """Create a job, show it until it ends. Ctrl-C cancels it. Raises typer.Exit where it does not succeed."""
    described = await train.describe(session, algorithm, model, data, held_out, params)
    job = await train.create(session, described)
    _title(f"{algorithm.upper()}: {params['steps']} steps")
    try:
        job = await watching.follow(session, job.name)
    except asyncio.CancelledError:
        output.say("interrupted; the job is cancelled")
        await jobs.cancel_job(session, job.name)
        raise
    watching.show_end(job)
    if job_views.state(job) != "SUCCEEDED":
        raise typer.Exit(exits.FAILED)
    return Trained(job.name, job.step_count)


async def _longer_sft(
    session: Session, settings: Settings, seed: int, sft: Trained, grpo: Trained, data: str, held_out: str
) -> Trained:
    """SFT gone on with for as long as GRPO's steps took, by the pace that each had here."""
    from services.cli.demo import measuring

    sft_seconds, sft_steps = await measuring.training_seconds(session, sft.name, "train/loss")
    grpo_seconds, _ = await measuring.training_seconds(session, grpo.name, "reward/mean")
    steps = max(1, round(grpo_seconds / sft_seconds * sft_steps))
    output.say(f"GRPO's steps took {display.duration(grpo_seconds)}, in which SFT does {steps} steps more")
    params = settings.params({**settings.sft, "seed": seed, "steps": steps})
    return await train_on(session, "sft", sft.name, data, held_out, params)


def _judge(settings: Settings, found: list[Measurement]) -> bool:
    from services.cli.demo import report

    sft, grpo, *more = found[1:]
    output.say(report.verdict(sft, grpo))
    for item in more:
        output.say(report.verdict(item, grpo))
    if not settings.demands_gain:
        output.say("a short run: it shows that everything works; a gain is not asked for")
        return True
    if report.beyond_intervals(sft, grpo):
        return True
    output.say("GRPO's gain over SFT is not beyond the intervals", style="bold red")
    return False


def _say_where(sft: Trained, grpo: Trained) -> None:
    from services.cli import references

    names = [references.short(job.name) for job in (sft, grpo)]
    output.say(f"checkpoints, in Hugging Face form: {names[0]}/step-{sft.steps}, {names[1]}/step-{grpo.steps}")
    output.hint(f"rlhf checkpoint download {names[1]} --to my-model     a folder for transformers")
    output.hint(f"rlhf job metrics {names[1]}     every number; samples and logs likewise")
    output.hint(f"rlhf train grpo --model {names[1]} …     go on from it")


def _title(text: str) -> None:
    output.say("")
    output.say(text, style="bold")
