"""Every algorithm that makes a language model gets to a stated level of a task whose ceiling is 1 (docs/learning.md).

What `dpo` and `reward_model` reach on their task, where the ceiling is 1 too, is in test_runner_dpo.py and
test_runner_reward_model.py. tests/bench/bench_learning.py does this for three seeds and draws the curves.
"""

from __future__ import annotations

import pytest

from services.trainer.algorithms import algorithms
from tests.fix_learning import BASE_LEVEL, LEVEL, PARAMS, Learning

pytestmark = pytest.mark.slow
SEED = 0
# One without a critic and one with; the others take minutes more, and share what these two show.
QUICK = {"grpo", "ppo"}
# The rate is constant, so that fewer steps are the same run cut short: `ppo`, whose steps take longest, is far enough
# above the level by then.
STEPS = {"ppo": {"steps": 24}}


def test_no_algorithm_is_left_out() -> None:
    rewarded = {name for name, entry in algorithms.items() if entry.needs_reward}
    assert rewarded == PARAMS.keys()


def test_fine_tuning_learns_what_it_is_shown(learning: Learning) -> None:
    learnt = learning.fine_tuned(SEED)
    assert learnt.end.outcome == "succeeded", learnt.end
    assert learnt.before <= 0.2 and learnt.after >= LEVEL, learnt.held_out


@pytest.mark.parametrize(
    "algorithm", [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in PARAMS]
)
def test_rewards_teach_the_rest(learning: Learning, algorithm: str) -> None:
    learnt = learning.reinforced(algorithm, SEED, **STEPS.get(algorithm, {}))
    assert learnt.end.outcome == "succeeded", learnt.end
    assert learnt.rewards[0] <= BASE_LEVEL and learnt.level >= LEVEL, learnt.rewards
    # And of the saved weights, by a process that knows nothing of the run.
    assert learnt.before <= BASE_LEVEL and learnt.after >= LEVEL, learnt.held_out
