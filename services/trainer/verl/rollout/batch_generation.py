"""Answering a step's prompts on CPU: an agent loop manager for single turns, without a process or a call per answer.

verl asks of such a manager only that answers lie in TransferQueue when it samples. Its own starts an agent loop, a
reward worker and three calls for each answer, which for a small model takes many times as long as the answers do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
import torch
import transfer_queue as tq
from tensordict import TensorDict
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from services import rewards
from services.mesh.runs.spool import Sample
from services.models.chat_template import render
from services.models.sampling import Completion, Request
from services.trainer.verl.rollout.overlong import Overlong
from services.trainer.verl.rollout.rewards import RunRewards

# Answers a step that are shown to people.
SHOWN = 2


@dataclass(frozen=True)
class _Prompt:
    """One row of the batch: `uid` is verl's name of the group of its answers."""

    uid: str
    row_index: int
    messages: list[dict[str, str]]
    tokens: tuple[int, ...]
    answer: str | None
    metadata: Mapping[str, Any]


@dataclass
class _StepScores:
    """Sums over all answers of a step, which may be asked for in several batches."""

    step: int
    batches: int = 0
    answers: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    # Prompts whose answers all had the same score.
    uniform: int = 0

    def add(self, scores: Sequence[rewards.Score], group: int) -> None:
        """`scores` of whole groups of answers to one prompt, one group after the other."""
        self.batches += 1
        self.answers += len(scores)
        for start in range(0, len(scores), group):
            self.uniform += len({score.score for score in scores[start : start + group]}) == 1
        for score in scores:
            for name, value in {"": score.score, **score.parts}.items():
                self.sums[name] = self.sums.get(name, 0.0) + value

    def means(self) -> dict[str, float]:
        """By part; the score itself has the empty name."""
        return {name: total / self.answers for name, total in self.sums.items()}


@dataclass(frozen=True)
class StepBatch:
    """One of the batches of prompts that a step asks for, from 0."""

    step: int = -1
    number: int = 0

    def following(self, step: int) -> StepBatch:
        return StepBatch(step, self.number + 1 if step == self.step else 0)

    def seed(self, run_seed: int, server: int) -> int:
        """What a server draws its answers from: of the step alone, so that a resumed run draws the same."""
        text = f"{run_seed}:{self.step}:{self.number}:{server}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


class BatchGeneration:
    """Generates, scores and stores the answers to a batch of prompts before it returns."""

    def __init__(
        self,
        config: Any,
        tokenizer: Any,
        servers: Sequence[Any],
        judges: RunRewards,
        on_metrics: Callable[[Mapping[str, float]], None],
        on_samples: Callable[[list[Sample]], None],
    ) -> None:
        self._rollout = config.actor_rollout_ref.rollout
        self._tokenizer = tokenizer
        self._servers = servers
        self._judges = judges
        self._on_metrics = on_metrics
        self._on_samples = on_samples
        self._overlong = Overlong.of(config)
        self._filtered = config.algorithm.filter_groups.enable
        self._filtered_by = config.algorithm.filter_groups.metric
        self._scores = _StepScores(step=-1)
        self._held_out = _StepScores(step=-1)
        self._batch = StepBatch()

    def generate_sequences(self, batch: TensorDict) -> None:
        """verl's call: `batch` has the dataset's fields, a uid per row and the step. Answers go to TransferQueue."""
        prompts = [self._prompt(row) for row in _rows(batch)]
        step = int(batch["global_steps"])
        grouped = [prompt for prompt in prompts for _ in range(self._rollout.n)]
        self._batch = self._batch.following(step)
        completions = self._complete([self._request(prompt) for prompt in grouped], self._batch)
        texts = [self._tokenizer.decode(one.tokens, skip_special_tokens=True) for one in completions]
        samples = [
            rewards.RewardSample(prompt.messages, text, prompt.answer, prompt.metadata)
            for prompt, text in zip(grouped, texts, strict=True)
        ]
        scores = judged = self._judges.score(samples)
        self._add_held_out(self._judges.held_out(samples), step)
        if self._overlong is not None:
            scores = [
                self._overlong.applied(score, len(one.tokens)) for score, one in zip(scores, completions, strict=True)
            ]
        self._store(grouped, completions, scores, judged, step)
        self._report(grouped, texts, scores, step)

    def _add_held_out(self, scores: list[rewards.Score], step: int) -> None:
        if not scores:
            return
        if step != self._held_out.step:
            self._held_out = _StepScores(step)
        self._held_out.add(scores, self._rollout.n)
        means = self._held_out.means()
        values = {"held_out/mean": means.pop("")}
        self._on_metrics(values | {f"held_out/{part}/mean": mean for part, mean in means.items()})

    def _prompt(self, row: Mapping[str, Any]) -> _Prompt:
        messages = list(row["extra_info"]["prompt"])
        return _Prompt(
            uid=row["uid"],
            row_index=int(row["index"]),
            messages=messages,
            tokens=tuple(render(self._tokenizer, messages, opening=True)),
            answer=row["reward_model"]["ground_truth"],
            metadata=row["extra_info"]["metadata"],
        )

    def _request(self, prompt: _Prompt) -> Request:
        return Request(
            prompt=prompt.tokens,
            max_new_tokens=self._rollout.response_length,
            temperature=self._rollout.temperature,
            top_p=self._rollout.top_p,
            top_k=max(0, self._rollout.top_k),
        )

    def _complete(self, requests: list[Request], batch: StepBatch) -> list[Completion]:
        """Share the requests out among the servers; each answers its share in one call."""
        seed = self._rollout.seed
        shares = [requests[index :: len(self._servers)] for index in range(len(self._servers))]
        answered = ray.get(
            [
                server.generate_all.remote(share, batch.seed(seed, place))
                for place, (server, share) in enumerate(zip(self._servers, shares, strict=True))
                if share
            ]
        )
        completions: list[Any] = [None] * len(requests)
        for index, share in enumerate(answered):
            completions[index :: len(self._servers)] = share
        return completions

    def _store(
        self,
        prompts: list[_Prompt],
        completions: list[Completion],
        scores: list[rewards.Score],
        judged: list[rewards.Score],
        step: int,
    ) -> None:
        """`scores` are trained on; groups are left out by `judged`, what the reward itself gave."""
        keys, fields, tags = [], [], []
        for index, (prompt, completion, score, own) in enumerate(
            zip(prompts, completions, scores, judged, strict=True)
        ):
            # verl's key: group, answer in the group, turn of the answer.
            keys.append(f"{prompt.uid}_{index % self._rollout.n}_0")
            row = _fields(prompt, completion, score.score)
            if self._filtered:
                # Where verl's filter of groups reads its metric.
                row["extra_fields"] = {"reward_extra_info": {self._filtered_by: own.score}}
            fields.append(row)
            tags.append(_tags(prompt, completion, step))
        tq.kv_batch_put(keys=keys, partition_id="train", fields=list_of_dict_to_tensordict(fields), tags=tags)
        uids = list(dict.fromkeys(prompt.uid for prompt in prompts))
        tq.kv_batch_put(keys=uids, partition_id="train", tags=[{"status": "finished"}] * len(uids))

    def _report(self, prompts: list[_Prompt], texts: list[str], scores: list[rewards.Score], step: int) -> None:
        if step != self._scores.step:
            self._scores = _StepScores(step)
        self._scores.add(scores, self._rollout.n)
        means = self._scores.means()
        sampled = means.pop("")
        values = {f"reward/{part}/mean": mean for part, mean in means.items()}
        if self._rollout.n > 1:
            values["reward/uniform_groups"] = self._scores.uniform * self._rollout.n / self._scores.answers
        if self._filtered:
            # verl's own figures are those of the prompts that are kept.
            values["rollout/reward/mean"] = sampled
            values["rollout/prompts"] = self._scores.answers / self._rollout.n
        self._on_metrics(values)
        if self._scores.batches > 1:
            return
        shown = zip(prompts[:SHOWN], texts[:SHOWN], scores[:SHOWN], strict=True)
        self._on_samples(
            [
                Sample(
                    row_index=prompt.row_index,
                    prompt=prompt.messages[-1]["content"],
                    completion=text,
                    expected=prompt.answer,
                    score=score.score,
                    parts=dict(score.parts),
                )
                for prompt, text, score in shown
            ]
        )


def _rows(batch: TensorDict) -> list[dict[str, Any]]:
    """The non-tensor fields that are read here, row by row."""
    names = ("uid", "reward_model", "extra_info", "index")
    columns = [list(batch[name]) for name in names]
    return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]


def _fields(prompt: _Prompt, completion: Completion, score: float) -> dict[str, Any]:
    """What verl's trainer reads of one answer; T tokens of prompt and answer, R of the answer."""
    prompt_tokens = torch.tensor(prompt.tokens, dtype=torch.int64)
    response_R = torch.tensor(completion.tokens, dtype=torch.int64)  # noqa: N806
    mask_R = torch.ones_like(response_R)  # noqa: N806
    # An answer's reward stands at its last token.
    reward_R = torch.zeros(len(completion.tokens), dtype=torch.float32)  # noqa: N806
    reward_R[-1] = score
    input_T = torch.cat([prompt_tokens, response_R])  # noqa: N806
    return {
        "uid": prompt.uid,
        "prompts": prompt_tokens,
        "responses": response_R,
        "response_mask": mask_R,
        "loss_mask": mask_R,
        "rollout_log_probs": torch.tensor(completion.logprobs, dtype=torch.float32),
        "rm_scores": reward_R,
        "input_ids": input_T,
        "position_ids": torch.arange(len(input_T)),
        "num_turns": 2,
    }


def _tags(prompt: _Prompt, completion: Completion, step: int) -> dict[str, Any]:
    """What verl's replay buffer reads of one answer; weights have the number of the step that made them."""
    return {
        "status": "success",
        "prompt_len": len(prompt.tokens),
        "response_len": len(completion.tokens),
        "seq_len": len(prompt.tokens) + len(completion.tokens),
        "global_steps": step,
        "min_global_steps": step - 1,
        "max_global_steps": step - 1,
    }
