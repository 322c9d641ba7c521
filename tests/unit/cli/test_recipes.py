"""Every recipe is right for the algorithms as they are now."""

from __future__ import annotations

from typing import Any

import pytest

from services.cli import recipe_files
from services.mesh.errors import NotFound
from services.mesh.validation.params import parse
from services.trainer.algorithms import algorithms
from services.trainer.algorithms.retention import check_retention
from services.trainer.training.launch_plan import JobFacts, PlanInputs
from tests.unit.trainer.test_algorithms import FACTS, INPUTS

PARAMETERS = 135_000_000


def facts(algorithm: str, needs_validation: bool) -> JobFacts:
    """A job of middling size, with a model whose context is long enough for all of them."""
    formats = algorithms.get(algorithm).dataset_formats
    return JobFacts(
        device=FACTS.device,
        slots=1,
        train_format=formats[0],
        train_rows=10_000,
        validation_format=formats[0] if needs_validation else None,
        validation_rows=1000 if needs_validation else 0,
        context_length=8192,
        model_parameters=PARAMETERS,
        memory_bytes=64 * 2**30,
    )


@pytest.mark.parametrize("name", recipe_files.names())
def test_a_recipe_is_taken_as_it_stands(name: str) -> None:
    recipe = recipe_files.read(name)
    entry = algorithms.get(recipe.algorithm)
    given: dict[str, Any] = {}
    for path in recipe.needs:
        *groups, last = path.split(".")
        group = given
        for key in groups:
            group = group.setdefault(key, {})
        group[last] = "projects/p/models/judge"
    params = parse(entry.Params, recipe_files.merged(recipe.params, given))
    assert entry.check(params, facts(recipe.algorithm, recipe.needs_validation)) == []
    assert check_retention(params.checkpoints, recipe.needs_validation) == []
    plan = entry.plan(params, PlanInputs(**{**vars(INPUTS), "train_rows": 10_000}))
    assert plan.total_steps > 0
    assert recipe.version >= 1 and len(recipe.summary) > 20 and len(recipe.when) > 40


def test_chat_is_judged_by_a_model_which_must_be_named() -> None:
    recipe = recipe_files.read("ppo-chat")
    assert recipe.params["reward"] == {"name": "model"}
    assert list(recipe.missing(recipe.params)) == ["reward.params.model"]
    assert recipe.missing(recipe_files.merged(recipe.params, {"reward": {"params": {"model": "taste"}}})) == {}
    assert [name for name in recipe_files.names() if recipe_files.read(name).needs] == ["ppo-chat"]


def test_a_change_goes_into_its_group() -> None:
    recipe = recipe_files.read("sft-lora")
    merged = recipe_files.merged(recipe.params, {"lora": {"rank": 4}, "epochs": 9})
    assert merged["lora"] == {**recipe.params["lora"], "rank": 4}
    assert merged["epochs"] == 9 and recipe.params["epochs"] == 3
    assert recipe_files.merged(recipe.params, {"lora": None})["lora"] is None


def test_an_unknown_recipe_names_those_that_there_are() -> None:
    with pytest.raises(NotFound, match="sft-lora"):
        recipe_files.read("../pyproject")
