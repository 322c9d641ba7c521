"""What a step's answers were worth and looked like, where verl's own agent loop has made and scored them (vLLM).

It leaves each answer in TransferQueue with what the reward function said of it (reward_function.py); verl's trainer
takes the score alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import transfer_queue as tq

from services.mesh.runs.spool import Sample
from services.trainer.verl.rollout.batch_generation import SHOWN
from services.trainer.verl.rollout.reward_function import failure

# Of the held-out reward's score and parts, as the reward function names them.
HELD_OUT = "held_out/"
# What DAPO's reward manager adds: what it took, which our own engine calls by the second name, and whether it took any.
_TAKEN, _OVERLONG = "overlong_reward", "overlong"
_FIELDS = ["raw_prompt", "responses", "rm_scores", "reward_model", "index", "extra_fields"]


def report(
    batch: Any,
    decode: Callable[[Sequence[int]], str],
    on_metrics: Callable[[Mapping[str, float]], None],
    on_samples: Callable[[list[Sample]], None],
) -> None:
    """The means of the reward's parts over `batch`, a KVBatchMeta, and some of its answers.

    Raises RewardError where one could not be judged.
    """
    data: Any = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=_FIELDS)
    given = [each["reward_extra_info"] for each in data["extra_fields"]]
    for one in given:
        if error := failure(one):
            raise error
    on_metrics(means(given) | uniform_groups(batch.keys, [float(scores.sum()) for scores in data["rm_scores"]]))
    columns = [list(data[name])[:SHOWN] for name in ("raw_prompt", "responses", "rm_scores", "reward_model", "index")]
    on_samples(
        [
            Sample(
                row_index=int(index),
                prompt=list(prompt)[-1]["content"],
                completion=decode(response.tolist()),
                expected=reward_model["ground_truth"],
                score=float(scores.sum()),
                parts=parts(one),
            )
            for prompt, response, scores, reward_model, index, one in zip(*columns, given, strict=False)
        ]
    )


def uniform_groups(keys: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """The share of prompts whose answers all had the same score; a key is `prompt_answer_turn`."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for key, score in zip(keys, scores, strict=True):
        groups[key.split("_")[0]].append(score)
    if all(len(group) == 1 for group in groups.values()):
        return {}
    return {"reward/uniform_groups": fmean(len(set(group)) == 1 for group in groups.values())}


def means(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Under the names that our own engine's answers have (batch_generation.py)."""
    values: defaultdict[str, list[float]] = defaultdict(list)
    for answer in answers:
        for name, value in parts(answer).items():
            values[f"reward/{name}/mean"].append(value)
        for name, value in answer.items():
            if name.startswith(HELD_OUT):
                values["held_out/mean" if name == f"{HELD_OUT}score" else f"{name}/mean"].append(float(value))
    return {name: fmean(found) for name, found in values.items()}


def parts(answer: Mapping[str, Any]) -> dict[str, float]:
    """Of the reward itself, of what the reward function and verl's reward manager have said of one answer."""
    taken = {_OVERLONG: float(answer[_TAKEN])} if _TAKEN in answer else {}
    left_out = ("score", _TAKEN, _OVERLONG)
    own = {name: value for name, value in answer.items() if name not in left_out and not name.startswith(HELD_OUT)}
    return {**{name: float(value) for name, value in own.items()}, **taken}
