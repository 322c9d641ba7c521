"""Rewards: what a completion is worth. One file each.

An entry is a class with a docstring, a frozen `Params`, and either `score`, a pure rule (`Rule`), or `open`, which
makes a judge that holds what judging needs: a connection, a process, a model. A rule never raises for what a sample
contains, because one odd completion must not end a training run; settings that are wrong are refused earlier, by
`parse`. Whoever scores goes through `open_judge`, which holds every entry to the contract: one finite score a sample,
the same parts in each, and an error that names the reward and the sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, TypeGuard

from services.mesh.errors import InvalidArgument, Violation
from services.mesh.registry import Registry
from services.mesh.validation import params as mesh_params
from services.mesh.validation.partial import collect_violations, value_or
from services.rewards.answer_check import AnswerMismatch
from services.rewards.errors import RewardError
from services.rewards.spec import DEFAULT_REWARD_SITE, RewardSite


@dataclass(frozen=True)
class RewardSample:
    """One completion to judge. `prompt` is the chat messages (or the rendered text), `answer` the row's reference,
    which a row may lack; a rule that needs one then scores 0."""

    prompt: Sequence[Mapping[str, Any]] | str
    completion: str
    answer: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)


# Of fp32, in which a trainer computes with it: beyond, it would be an infinity there.
LARGEST_SCORE = 3.4028234663852886e38


def is_score(value: Any) -> TypeGuard[float]:
    """Whether it is a number that fp32 can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_SCORE


@dataclass(frozen=True)
class Score:
    """`score` is what training maximises; each of `parts` is a metric series of its own. All are finite in fp32."""

    score: float
    parts: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raises ValueError for NaN or an infinity: an average over a batch would be lost with it."""
        if not all(abs(value) <= LARGEST_SCORE for value in (self.score, *self.parts.values())):
            raise ValueError(f"a score must be finite, ±{LARGEST_SCORE:.2g} at most: {self}")


class ModelScorer(Protocol):
    """A loaded reward model."""

    def score(self, samples: Sequence[RewardSample]) -> list[float]:
        """One number a sample, in order."""
        ...

    def close(self) -> None: ...


def _give_up(why: str, seconds: float) -> None:
    raise RewardError(why, reason="REWARD_UNAVAILABLE")


def _no_models(folder: str) -> ModelScorer:
    raise RewardError("no model can be loaded here", reason="REWARD_UNAVAILABLE")


@dataclass(frozen=True)
class RewardContext:
    """Where a judge works. `wait(why, seconds)` is called while what the judge depends on is away: it says so, sleeps,
    and raises where nobody wants to wait. `check` is called now and then while it works, and raises to end that.
    `load_model` loads a reward model from a folder."""

    site: RewardSite = DEFAULT_REWARD_SITE
    wait: Callable[[str, float], None] = _give_up
    check: Callable[[], None] = lambda: None
    load_model: Callable[[str], ModelScorer] = _no_models


class Judge(Protocol):
    """A reward at work."""

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        """One Score per sample, in order, each with the same keys in `parts`. Raises RewardError."""
        ...

    def close(self) -> None: ...


class Reward:
    """The shape of an entry. It is used as a class and never instantiated."""

    Params: ClassVar[type[Any]]

    @staticmethod
    def needs_answer(params: Any) -> bool:
        """Whether rows without an answer can be refused before anything starts."""
        return False

    @staticmethod
    def misfit(params: Any, answers: Sequence[str]) -> AnswerMismatch | None:
        """What is odd about the answers (some of a dataset's) as what this reward compares with; None where nothing
        is."""
        return None

    @staticmethod
    def check(params: Any, site: RewardSite, field: str, depth: int) -> list[Violation]:
        """What is wrong with parsed `params` at this site, each violation under `field`. `depth` counts the rewards
        that this one is a component of. The params may be known in part: each rule is asked by `collect_violations`."""
        return []

    @staticmethod
    def complete(params: Any) -> dict[str, Any]:
        """The whole set as JSON values, defaults included: what stands in a launch plan."""
        return mesh_params.to_json(params)

    @staticmethod
    def models(params: Any) -> dict[str, str]:
        """References of the models that it loads, by the path of the parameter that names each."""
        return {}

    @staticmethod
    def parts(params: Any) -> frozenset[str] | None:
        """What its scores are made of; None where only whoever judges knows."""
        return None

    @staticmethod
    def open(params: Any, surroundings: RewardContext) -> Judge:
        """A judge; whoever opens it closes it."""
        raise NotImplementedError


class Rule(Reward):
    """An entry that needs the text alone."""

    @staticmethod
    def score(samples: Sequence[RewardSample], params: Any) -> list[Score]:
        """One Score per sample, in order, each with the same keys in `parts`."""
        raise NotImplementedError


rewards: Registry[type[Reward]] = Registry("reward", __name__)


def read(
    name: str, params: Mapping[str, Any], site: RewardSite | None = None, field: str = "reward", depth: int = 0
) -> tuple[Any, list[Violation]]:
    """The params of the reward called `name`, without what is wrong (services/mesh/validation/partial.py), and all that
    is: at `<field>.name` for an unknown name, under `<field>.params` for the rest. Without a site only the form is
    checked. None for a reward that does not exist."""
    try:
        entry = rewards.get(name, f"{field}.name")
    except InvalidArgument as error:
        return None, list(error.violations)
    parsed, found = mesh_params.read(entry.Params, params, f"{field}.params")
    if site is not None:
        found += collect_violations(lambda: entry.check(parsed, site, f"{field}.params", depth))
    return parsed, found


def parse(name: str, params: Mapping[str, Any], site: RewardSite | None = None, field: str = "reward") -> Any:
    """Like `read`. Raises InvalidArgument with everything that is wrong."""
    parsed, found = read(name, params, site, field)
    if found:
        raise InvalidArgument(found)
    return parsed


def needs_answer(name: str, params: Mapping[str, Any]) -> bool:
    """Whether it compares with an answer, as far as its params are right."""
    parsed, _ = read(name, params)
    return parsed is not None and value_or(lambda: rewards.get(name).needs_answer(parsed), False)


def misfit(name: str, params: Mapping[str, Any], answers: Sequence[str]) -> AnswerMismatch | None:
    """Of a reward whose params are right, with some answers of the dataset."""
    return rewards.get(name).misfit(parse(name, params), answers) if answers else None


def complete(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters, defaults included. Raises InvalidArgument."""
    return rewards.get(name).complete(parse(name, params))


def models(name: str, params: Mapping[str, Any]) -> dict[str, str]:
    """References of the models that it loads, by the path of the parameter, as far as its params are right."""
    parsed, _ = read(name, params)
    return {} if parsed is None else value_or(lambda: rewards.get(name).models(parsed), {})


def parts(name: str, params: Mapping[str, Any]) -> frozenset[str] | None:
    """Of its scores, whatever it judges; None where they are not known before, or its params are wrong."""
    parsed, wrong = read(name, params)
    if parsed is None or wrong:
        return None
    if not issubclass(entry := rewards.get(name), Rule):
        return entry.parts(parsed)
    return frozenset(entry.score([RewardSample("", "", None)], parsed)[0].parts)


@contextlib.contextmanager
def opened(name: str, params: Mapping[str, Any], surroundings: RewardContext | None = None) -> Iterator[Judge]:
    """A judge for the length of a block. Raises InvalidArgument, RewardError."""
    judge = open_judge(name, params, surroundings)
    try:
        yield judge
    finally:
        judge.close()


def open_judge(name: str, params: Mapping[str, Any], surroundings: RewardContext | None = None) -> Judge:
    """A judge that keeps to the contract. Raises InvalidArgument for wrong params, RewardError where it can't start."""
    entry, parsed = rewards.get(name), parse(name, params)
    if issubclass(entry, Rule):
        return _Checked(name, _RuleJudge(entry, parsed))
    try:
        return _Checked(name, entry.open(parsed, surroundings or RewardContext()))
    except RewardError as error:
        raise error.of(name, []) from None


def score(name: str, params: Mapping[str, Any], samples: Sequence[RewardSample]) -> list[Score]:
    """Judge one batch. Raises InvalidArgument for an unknown name or wrong params, RewardError."""
    with opened(name, params) as judge:
        return judge.score(samples)


class _RuleJudge:
    def __init__(self, entry: type[Rule], params: Any) -> None:
        self._entry = entry
        self._params = params

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        try:
            return self._entry.score(samples, self._params)
        except Exception:
            # Again one by one, for the one that it is about.
            return [self._one(index, sample) for index, sample in enumerate(samples)]

    def _one(self, index: int, sample: RewardSample) -> Score:
        try:
            return self._entry.score([sample], self._params)[0]
        except Exception as error:
            raise RewardError(f"{type(error).__name__}: {error}", index) from error

    def close(self) -> None:
        pass


class _Checked:
    """Whatever a judge answers, what leaves here is one finite score a sample with the same parts, or a RewardError."""

    def __init__(self, name: str, judge: Judge) -> None:
        self._name = name
        self._judge = judge

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        if not samples:
            return []
        try:
            scores = self._judge.score(samples)
            if len(scores) != len(samples):
                raise RewardError(f"gave {len(scores)} scores for {len(samples)} samples")
            for index, one in enumerate(scores):
                if one.parts.keys() != scores[0].parts.keys():
                    raise RewardError(f"has parts {sorted(one.parts)}, others {sorted(scores[0].parts)}", index)
            return scores
        except RewardError as error:
            raise error.of(self._name, samples) from error.__cause__

    def close(self) -> None:
        self._judge.close()
