"""Load a model folder, or a base model with an adapter, and answer questions with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from services.models import chat_template, loading, sampling
from services.trainer.training.launch_plan import ValidationPlan
from services.trainer.verifier.prompts import Question


class Answerer:
    """A model on the CPU, in `dtype`, or the precision it is stored in."""

    def __init__(self, folder: Path, base: Path | None = None, dtype: str = "auto") -> None:
        """`base` is given when `folder` holds an adapter (PEFT form), which stays beside the base's weights, as in
        training: a sum of the two may not exist in `dtype`. Raises what transformers and peft raise."""
        self.tokenizer = loading.tokenizer(folder)
        self.model = loading.language_model(base or folder, dtype)
        if base is not None:
            from peft import PeftModel

            computes_in = self.model.dtype
            # peft would keep the adapter in fp32.
            self.model = loading.cast(PeftModel.from_pretrained(self.model, str(folder)), computes_in)
        self.model.eval()
        self.context_length: int | None = getattr(self.model.config, "max_position_embeddings", None)
        self.end_tokens = end_tokens(self.model, self.tokenizer)
        self.pad_token = pad_token(self.tokenizer)

    def merge_adapter(self) -> None:
        """Answers come faster from the sum, and are the same where it is taken in fp32; elsewhere nothing is done."""
        if hasattr(self.model, "merge_and_unload") and self.model.dtype == torch.float32:
            self.model = self.model.merge_and_unload()

    def prompt(self, question: Question) -> tuple[int, ...]:
        return tuple(chat_template.render(self.tokenizer, question.messages, opening=True))

    def fits(self, question: Question, plan: ValidationPlan) -> bool:
        if self.context_length is None:
            return True
        return len(self.prompt(question)) + plan.max_new_tokens <= self.context_length

    def answer(self, questions: Sequence[Question], plan: ValidationPlan, seed: int) -> Iterator[list[str]]:
        """The answers, special tokens left out, batch by batch in the order of the questions."""
        generator = torch.Generator().manual_seed(seed)
        pending = iter(questions)
        while batch := list(islice(pending, plan.batch_size)):
            requests = [
                sampling.Request(self.prompt(question), plan.max_new_tokens, plan.temperature) for question in batch
            ]
            completions = sampling.sample(self.model, requests, self.end_tokens, self.pad_token, generator)
            yield [self.tokenizer.decode(one.tokens, skip_special_tokens=True) for one in completions]


def end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """Every token that ends an answer: the tokenizer's, those of the generation config (chat models name two), and the
    one by which the chat template ends the assistant's turn: of a base model it is neither.
    """
    configured = getattr(model.generation_config, "eos_token_id", None) or []
    configured = configured if isinstance(configured, list) else [configured]
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    turn = tokenizer(chat_template.turn_end(tokenizer), add_special_tokens=False)["input_ids"]
    return frozenset([*configured, tokenizer.eos_token_id, *(token for token in turn[:1] if token in special)])


def pad_token(tokenizer: Any) -> int:
    return tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
