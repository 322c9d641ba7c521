"""Training algorithms: one file each, which turns parameters into a launch plan for verl.

An entry is a class with a docstring (formula, source, when not to use it), a frozen `Params` whose defaults are the
vetted settings, and two pure functions. Nothing here imports torch or verl: a plan is made by a service and carried out
elsewhere.
"""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

from services.mesh.errors import Violation
from services.mesh.registry import Registry
from services.trainer.algorithms.headline import Headline
from services.trainer.training.launch_plan import JobFacts, LaunchPlan, PlanInputs


class Algorithm(Protocol):
    """The shape of an entry. It is used as a class and never instantiated."""

    Params: type[Any]
    # Formats of a dataset that it trains on, by their registered names.
    dataset_formats: ClassVar[tuple[str, ...]]
    # And of one that its checkpoints are validated on.
    validation_formats: ClassVar[tuple[str, ...]]
    # Whether the rows are answered and judged while it trains.
    needs_reward: ClassVar[bool]
    # Series that are worth a glance while it trains.
    headline_metrics: ClassVar[tuple[Headline, ...]]

    @staticmethod
    def check(params: Any, facts: JobFacts) -> list[Violation]:
        """Everything that would make the run fail or mislead, all at once; fields are those of `params`."""
        ...

    @staticmethod
    def plan(params: Any, inputs: PlanInputs) -> LaunchPlan:
        """The launch plan of checked parameters."""
        ...


algorithms: Registry[type[Algorithm]] = Registry("algorithm", __name__)
