"""Rule rewards: what a completion is worth, decided by its text alone. One file each.

An entry is a class with a docstring, a frozen `Params`, and `score`: a batch in, one Score per sample out. It never
raises for what a sample contains, because one odd completion must not end a training run; settings that are wrong are
refused earlier, by `parse`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# By name: importing the reward file math.py binds `math` in this package to that file.
from math import isfinite
from typing import Any, Protocol

from services.mesh import params as mesh_params
from services.mesh.registry import Registry


@dataclass(frozen=True)
class RewardSample:
    """One completion to judge. `prompt` is the chat messages (or the rendered text), `answer` the row's reference,
    which a row may lack; a reward with `needs_answer` then scores 0."""

    prompt: Sequence[Mapping[str, Any]] | str
    completion: str
    answer: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Score:
    """`score` is what training maximises; each of `parts` is a metric series of its own. All are finite."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for NaN or an infinity: an average over a batch would be lost with it."""
        if not all(isfinite(value) for value in (self.score, *self.parts.values())):
            raise ValueError(f"a score must be finite: {self}")


class Reward(Protocol):
    """The shape of an entry. It is used as a class and never instantiated."""

    Params: type[Any]
    # Whether rows without an answer can be refused before anything starts.
    needs_answer: bool

    @staticmethod
    def score(samples: Sequence[RewardSample], params: Any) -> list[Score]:
        """One Score per sample, in order, each with the same keys in `parts`."""
        ...


rewards: Registry[type[Reward]] = Registry("reward", __name__)


def score(name: str, params: Mapping[str, Any], samples: Sequence[RewardSample]) -> list[Score]:
    """Judge a batch with the reward called `name`. Raises InvalidArgument for an unknown name or wrong params."""
    entry = rewards.get(name)
    return entry.score(samples, mesh_params.parse(entry.Params, params))
