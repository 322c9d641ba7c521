"""A reward model of one's own: a sequence classifier with one output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from services.mesh.validation.params import STRICT_FIELDS
from services.models.kinds import REWARD_MODEL
from services.rewards import Judge, ModelScorer, Reward, RewardContext, RewardError, RewardSample, Score, rewards


@dataclass(frozen=True)
class ModelParams:
    model: Annotated[
        str,
        Field(
            max_length=400,
            description="projects/p/models/m, or a checkpoint of reward_model: projects/p/trainingJobs/j/checkpoints/c",
            json_schema_extra=REWARD_MODEL,
        ),
    ]
    shift: Annotated[float, Field(ge=-1e6, le=1e6, description="taken off the model's output")] = 0.0
    scale: Annotated[float, Field(gt=0, le=1e6, description="what the rest is divided by")] = 1.0
    clip: Annotated[
        float | None, Field(gt=0, le=1e6, description="the score stays within ± this; null sets no bounds")
    ] = None
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("model")
class Model(Reward):
    """What a reward model gives the conversation that the completion makes.

    score = clip((r − shift) / scale, ± clip), r the one output of the sequence classifier (`logits[:, 0]`) on prompt
    and completion as its own chat template renders them. Part: `output`, r. Stiennon et al. 2020 (arXiv:2009.01325),
    Ouyang et al. 2022 (arXiv:2203.02155); train one with `rlhf train reward_model`.

    A reward model is right about what it was trained on; a policy moves away from there and finds what it overrates
    (Gao et al. 2022, arXiv:2210.10760). Keep `kl_coefficient` above 0, and watch a `held_out_reward`.
    """

    Params = ModelParams

    @staticmethod
    def models(params: ModelParams) -> dict[str, str]:
        return {"model": params.model}

    @staticmethod
    def parts(params: ModelParams) -> frozenset[str]:
        return frozenset({"output"})

    @staticmethod
    def open(params: ModelParams, surroundings: RewardContext) -> Judge:
        folder = surroundings.site.models.get(params.model)
        if folder is None:
            raise RewardError(f"{params.model} is not at hand", reason="REWARD_MODEL_MISSING")
        return _Judge(params, surroundings.load_model(folder))


class _Judge:
    def __init__(self, params: ModelParams, scorer: ModelScorer) -> None:
        self._params = params
        self._scorer = scorer

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        outputs = self._scorer.score(samples)
        return [self._one(output, index) for index, output in enumerate(outputs)]

    def _one(self, output: float, index: int) -> Score:
        value = (output - self._params.shift) / self._params.scale
        if self._params.clip is not None:
            value = max(-self._params.clip, min(self._params.clip, value))
        try:
            return Score(value, {"output": output})
        except ValueError:
            raise RewardError(f"the model's output is {output}", index) from None

    def close(self) -> None:
        self._scorer.close()
