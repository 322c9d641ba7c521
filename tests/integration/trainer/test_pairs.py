"""What trainers of pairs are made of: which pairs a run meets, adapters merged into a reward model, means of a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("start", "total"), [(0, 2), (0, 3), (2, 3), (1, 7), (3, 6), (0, 30)])
def test_the_pairs_that_a_run_meets_are_those_that_its_loader_gives(start: int, total: int) -> None:
    from torch.utils.data import DistributedSampler
    from torchdata.stateful_dataloader import StatefulDataLoader

    from services.trainer.verl.dpo import met_by

    rows: Any = list(range(11))
    sampler = DistributedSampler(rows, shuffle=True, num_replicas=1, rank=0, drop_last=True, seed=3)
    loader = StatefulDataLoader(rows, batch_size=3, sampler=sampler, num_workers=0, drop_last=True)
    given: set[int] = set()
    step = 0
    # As verl's loop has it: three steps a pass, two rows left over.
    for epoch in range(10):
        sampler.set_epoch(epoch)
        for batch in loader:
            step += 1
            if start < step <= total:
                given.update(batch.tolist())
    assert met_by(sampler, 3, 3, start, total) == given


def test_batches_are_full_and_miss_nobody() -> None:
    from services.trainer.verl.dpo import batches

    assert list(batches([5, 6, 7, 8, 9], 2)) == [[5, 6], [7, 8], [9, 9]]
    assert list(batches([1, 2], 5)) == [[1, 2, 1, 2, 1]]
    assert list(batches([], 5)) == []


def test_an_adapter_is_merged_as_peft_merges_it(tiny_model: Path) -> None:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from services.trainer.verl.classifier_engine import merged

    torch.manual_seed(0)
    plain = AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1)
    names = set(plain.state_dict())
    settings = LoraConfig(task_type=TaskType.SEQ_CLS, r=4, lora_alpha=12, target_modules="all-linear")
    adapted = get_peft_model(plain, settings)
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1 if "lora_" in name else 1.0)
    ours = merged({name: tensor.clone() for name, tensor in adapted.state_dict().items()}, scale=12 / 4)
    theirs = adapted.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys() == names
    for name, tensor in theirs.items():
        assert torch.allclose(ours[name], tensor, atol=1e-6), name


def test_metrics_are_means_over_the_pairs_of_all_micro_batches_and_slots() -> None:
    from services.trainer.verl.pairs import PairTrainer

    raw = {"train/loss": 0.5, "pairs": [[3.0, 1.0], [4.0]], "rewards/margin": [[6.0, 2.0], [-4.0]]}
    found = PairTrainer.metrics(None, raw)  # type: ignore[arg-type]
    assert found["train/loss"] == 0.5 and found["rewards/margin"] == (6 + 2 - 4) / 8
