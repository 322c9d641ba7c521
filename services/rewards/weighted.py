"""Several rewards at once."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

from pydantic import Field

from services import rewards as package
from services.mesh.errors import Violation
from services.mesh.validation.params import STRICT_FIELDS, to_json
from services.mesh.validation.partial import collect_violations, value_or
from services.rewards import Judge, Reward, RewardContext, RewardError, RewardSample, Score, rewards
from services.rewards.answer_check import AnswerMismatch
from services.rewards.spec import RewardSite

# A sum of sums of sums; more is a mistake, or an attempt at one.
DEEPEST = 3


@dataclass(frozen=True)
class Component:
    """One reward of the sum."""

    name: Annotated[str, Field(description="one of the registered rewards")]
    weight: Annotated[float, Field(ge=-1000, le=1000, description="what its score is multiplied by")] = 1.0
    params: Annotated[dict[str, Any], Field(description="parameters of that reward")] = field(default_factory=dict)
    label: Annotated[
        str, Field(pattern=r"^([a-z][a-z0-9_]{0,62})?$", description="how its series are called; empty: its name")
    ] = ""
    __pydantic_config__ = STRICT_FIELDS

    @property
    def called(self) -> str:
        return self.label or self.name


@dataclass(frozen=True)
class WeightedParams:
    components: Annotated[
        list[Component], Field(min_length=1, max_length=32, description="what is summed: name, weight, params, label")
    ]
    __pydantic_config__ = STRICT_FIELDS


@rewards.register("weighted")
class Weighted(Reward):
    """A sum of other rewards, each with a weight.

    score = Σ weight_i · score_i. Parts: for each component, under its label, its score before weighting (`format_tags`)
    and each of its parts (`format_tags/order`), so that a sum which rises can be told from the part that rises.

    Rewards on unlike scales drown each other: bring them to comparable ranges, and let form weigh less than the goal.
    Above all not for components that can be had without the goal: they will be.
    """

    Params = WeightedParams

    @staticmethod
    def needs_answer(params: WeightedParams) -> bool:
        return any(value_or(partial(_needs_answer, one), False) for one in params.components)

    @staticmethod
    def misfit(params: WeightedParams, answers: Sequence[str]) -> AnswerMismatch | None:
        found = (package.misfit(one.name, one.params, answers) for one in params.components)
        return next((one for one in found if one is not None), None)

    @staticmethod
    def check(params: WeightedParams, site: RewardSite, field: str, depth: int) -> list[Violation]:
        field = f"{field}.components"
        if depth + 1 >= DEEPEST and any(value_or(partial(_is_sum, one), False) for one in params.components):
            return [Violation(field, f"sums may stand in each other {DEEPEST} deep")]
        each = [
            partial(_check_component, one, site, f"{field}.{index}", depth + 1)
            for index, one in enumerate(params.components)
        ]
        return collect_violations(lambda: _check_labels(params.components, field), *each)

    @staticmethod
    def complete(params: WeightedParams) -> dict[str, Any]:
        return to_json(
            replace(
                params,
                components=[replace(one, params=package.complete(one.name, one.params)) for one in params.components],
            )
        )

    @staticmethod
    def models(params: WeightedParams) -> dict[str, str]:
        return {
            f"components.{index}.params.{path}": reference
            for index, one in enumerate(params.components)
            for path, reference in value_or(partial(_models, one), {}).items()
        }

    @staticmethod
    def parts(params: WeightedParams) -> frozenset[str] | None:
        found: set[str] = set()
        for one in params.components:
            own = package.parts(one.name, one.params)
            if own is None:
                return None
            found |= {one.called, *(f"{one.called}/{part}" for part in own)}
        return frozenset(found)

    @staticmethod
    def open(params: WeightedParams, surroundings: RewardContext) -> Judge:
        return _Sum(params.components, surroundings)


def _needs_answer(one: Component) -> bool:
    return package.needs_answer(one.name, one.params)


def _models(one: Component) -> dict[str, str]:
    return package.models(one.name, one.params)


def _is_sum(one: Component) -> bool:
    return one.name == "weighted"


def _check_component(one: Component, site: RewardSite, field: str, depth: int) -> list[Violation]:
    return package.read(one.name, one.params, site, field, depth)[1]


def _check_labels(components: Sequence[Component], field: str) -> list[Violation]:
    found: list[Violation] = []
    first: dict[str, int] = {}
    for index, one in enumerate(components):
        # One whose label is wrong has none that another could have too.
        called = value_or(partial(_called, one), None)
        if called is not None and first.setdefault(called, index) != index:
            message = f"{called!r} is the label of component {first[called]} too; give one of them another"
            found.append(Violation(f"{field}.{index}.label", message))
    return found


def _called(one: Component) -> str | None:
    return one.called


class _Sum:
    def __init__(self, components: Sequence[Component], surroundings: RewardContext) -> None:
        self._components = components
        self._judges: list[Judge] = []
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            for one in components:
                self._judges.append(package.open_judge(one.name, one.params, surroundings))
            undo.pop_all()

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        by_component = [judge.score(samples) for judge in self._judges]
        return [self._sum(index, scores) for index, scores in enumerate(zip(*by_component, strict=True))]

    def _sum(self, index: int, scores: Sequence[Score]) -> Score:
        total, parts = 0.0, {}
        for one, score in zip(self._components, scores, strict=True):
            total += one.weight * score.score
            parts[one.called] = score.score
            parts |= {f"{one.called}/{part}": value for part, value in score.parts.items()}
        try:
            return Score(total, parts)
        except ValueError as error:
            raise RewardError(str(error), index) from error

    def close(self) -> None:
        for judge in self._judges:
            judge.close()
