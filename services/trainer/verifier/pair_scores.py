"""Load a reward model as its users do, and see which answer of held-out pairs it scores higher."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import msgspec
import torch

from services.mesh.runs.spool import Sample
from services.models import chat_template, loading
from services.trainer.losses.bradley_terry import bradley_terry
from services.trainer.training.tasks import PairValidationPlan, RewardModelLoss

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class ScoredPair:
    """`row_index` is the line of the validation file; a completion's text is that of its last turn."""

    row_index: int
    prompt: str
    chosen: str
    rejected: str
    chosen_score: float
    rejected_score: float

    def samples(self) -> list[Sample]:
        """The better answer, then the worse."""
        return [
            Sample(row_index=self.row_index, prompt=self.prompt, completion=text, expected=None, score=score, parts={})
            for text, score in ((self.chosen, self.chosen_score), (self.rejected, self.rejected_score))
        ]


class RewardModelScorer:
    """A sequence classifier with one output, on the CPU, in the precision it is stored in."""

    def __init__(self, folder: Path) -> None:
        """Raises what transformers raises, and ValueError for a folder that is no whole reward model."""
        self.tokenizer = loading.tokenizer(folder)
        self.model = loading.reward_model(folder)
        self.model.eval()

    def tokens(self, conversation: Messages) -> list[int]:
        return chat_template.render(self.tokenizer, conversation)

    def scores(self, rows: list[list[int]]) -> list[float]:
        """One score of each row of tokens.

        transformers takes it at the last token that is not its configuration's padding; where that names none, it reads
        single rows alone.
        """
        padding = self.model.config.pad_token_id
        if padding is None:
            return [score for row in rows for score in self._scores([row], 0)]
        return self._scores(rows, padding)

    @torch.inference_mode()
    def _scores(self, rows: list[list[int]], padding: int) -> list[float]:
        width = max(map(len, rows))
        padded = torch.tensor([row + [padding] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        return self.model(input_ids=padded, attention_mask=mask).logits[:, 0].float().tolist()


def score_pairs(scorer: RewardModelScorer, path: Path, plan: PairValidationPlan) -> list[ScoredPair]:
    """The first pairs of the file, without those that are too long."""
    with path.open("rb") as file:
        rows = [msgspec.json.decode(line) for line in islice(file, plan.rows)]
    sides = [[scorer.tokens(row["prompt"] + row[side]) for side in ("chosen", "rejected")] for row in rows]
    kept = [index for index, pair in enumerate(sides) if max(map(len, pair)) <= plan.max_tokens]
    found = []
    for start in range(0, len(kept), plan.batch_size):
        batch = kept[start : start + plan.batch_size]
        scores = iter(scorer.scores([side for index in batch for side in sides[index]]))
        for index in batch:
            row = rows[index]
            texts = (row["prompt"][-1]["content"], row["chosen"][-1]["content"], row["rejected"][-1]["content"])
            found.append(ScoredPair(index, *texts, next(scores), next(scores)))
    return found


def summarise(pairs: list[ScoredPair], loss: RewardModelLoss) -> dict[str, float]:
    """The metrics of a validation. Equal scores count as wrong."""
    values = {"validation/pairs/count": float(len(pairs))}
    if pairs:
        margins = [pair.chosen_score - pair.rejected_score for pair in pairs]
        chosen, rejected = torch.tensor([(pair.chosen_score, pair.rejected_score) for pair in pairs]).double().unbind(1)
        values["validation/loss"] = float(bradley_terry(chosen, rejected, loss).mean())
        values["validation/accuracy"] = sum(margin > 0 for margin in margins) / len(pairs)
        values["validation/margin"] = sum(margins) / len(pairs)
    return values
