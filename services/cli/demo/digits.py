"""The main demonstration: a model from scratch learns to sort digits, first from examples, then from its own tries."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.cli import display, output
from services.cli.demo import measuring, problems, report, steps
from services.cli.demo.measuring import Measurement
from services.cli.demo.settings import Settings
from services.cli.demo.steps import Trained
from services.client import references

if TYPE_CHECKING:
    from services.client import AsyncClient

_SHOWN_ANSWERS = 8


class Digits:
    """One run, under names that no other run has."""

    def __init__(self, client: AsyncClient, home: Path, settings: Settings, seed: int) -> None:
        self._client, self._home, self._settings, self._seed = client, home, settings, seed
        self._id = references.new_id("demo")
        self._questions: list[str] = []

    async def run(self, compare: bool) -> bool:
        """Whether GRPO's gain is beyond the intervals, where the settings ask for that."""
        await self._prepare()
        sft = await self._train("sft", self._id, "examples", self._settings.sft)
        grpo = await self._train("grpo", sft.name, "prompts", self._settings.grpo)
        found = [
            await self._measure("untrained", sft, 0),
            await self._measure("after SFT", sft, sft.steps),
            await self._measure("after GRPO", grpo, grpo.steps),
        ]
        if compare:
            longer = await self._go_on_with_sft(sft, grpo)
            found.append(await self._measure("more SFT instead", longer, longer.steps))
        output.show()
        output.show(report.accuracy_table(found))
        output.show()
        for other in (found[1], *found[3:]):
            output.show(report.verdict(other, found[2]))
        output.show()
        output.show(report.answers_table(found, _SHOWN_ANSWERS))
        _say_where(sft, grpo)
        return judge(self._settings, before=found[1], after=found[2])

    async def _prepare(self) -> None:
        """Generate and upload the three sets, make the model."""
        sizes, folder = self._settings.sizes, self._home / "demo" / self._id
        files = await asyncio.to_thread(problems.write, self._seed, sizes, folder)
        self._questions = await asyncio.to_thread(measuring.questions, files.held_out)
        steps.title(f"Sorting the digits of numbers with {sizes.digits} digits (seed {self._seed})")
        output.say(f"{sizes.examples} clean examples, {sizes.prompts} prompts, {sizes.held_out} held out;")
        output.say(f"no number is in two sets: {folder}")
        await self._upload("examples", "messages", files.examples)
        await self._upload("prompts", "prompt", files.prompts)
        await self._upload("held-out", "prompt", files.held_out)
        await self._make_model()

    async def _upload(self, name: str, row_format: str, file: Path) -> None:
        await steps.upload(self._client, f"{self._id}-{name}", row_format, file)

    async def _make_model(self) -> None:
        from rlhf.trainer.v1.model_pb2 import ModelSource

        source = ModelSource()
        source.init.config.update(self._settings.config)
        source.init.characters.alphabet, source.init.seed = problems.ALPHABET, self._seed
        await steps.make_model(self._client, self._id, source)

    async def _train(self, algorithm: str, model: str, data: str, params: dict[str, Any], suffix: str = "") -> Trained:
        return await steps.train_on(
            self._client,
            f"{self._id}-{suffix or algorithm}",
            algorithm,
            model,
            f"{self._id}-{data}",
            f"{self._id}-held-out",
            self._settings.params({**params, "seed": self._seed}),
        )

    async def _measure(self, title: str, job: Trained, step: int) -> Measurement:
        return await measuring.measured(self._client, job.name, step, title, self._questions)

    async def _go_on_with_sft(self, sft: Trained, grpo: Trained) -> Trained:
        """SFT gone on with for as long as GRPO's steps took, by the pace that each had here."""
        sft_seconds, sft_steps = await measuring.training_seconds(self._client, sft.name, "train/loss")
        grpo_seconds, _ = await measuring.training_seconds(self._client, grpo.name, "reward/mean")
        more = max(1, round(grpo_seconds / sft_seconds * sft_steps))
        output.say(f"GRPO's steps took {display.duration(grpo_seconds)}, in which SFT does {more} steps more")
        return await self._train("sft", sft.name, "examples", {**self._settings.sft, "steps": more}, "more-sft")


def judge(settings: Settings, before: Measurement, after: Measurement) -> bool:
    """Whether the gain is what the settings ask for; said where it is not, or is not asked for."""
    if not settings.demands_gain:
        output.say("a short run: it shows that everything works; a gain is not asked for")
        return True
    if report.beyond_intervals(before, after):
        return True
    output.say("GRPO's gain over SFT is not beyond the intervals", style="bold red")
    return False


def _say_where(sft: Trained, grpo: Trained) -> None:
    first, last = references.short(sft.name), references.short(grpo.name)
    output.show(f"\ncheckpoints, in Hugging Face form: {first}/step-{sft.steps}, {last}/step-{grpo.steps}")
    output.hint(f"a folder for transformers:  rlhf checkpoint download {last} --to my-model")
    output.hint(f"every number, every answer:  rlhf job metrics {last}, rlhf job samples {last}")
    output.hint(f"go on from it:  rlhf train grpo --model {last} …\n")
