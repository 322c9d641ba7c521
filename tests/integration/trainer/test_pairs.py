"""What trainers of pairs are made of: which pairs a run meets, adapters merged into a reward model, means of a step."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.mesh.runs.files import SPOOL_FILE
from services.mesh.runs.spool import Problem, SampleBatch, SpoolWriter
from services.trainer.runs.records import Checkpoint, read_from
from services.trainer.verifier.process import Checker
from services.trainer.verifier.requests import CheckRequest
from tests.unit.trainer.test_algorithms import plan

torch = pytest.importorskip("torch")


@pytest.mark.parametrize(("start", "total"), [(0, 2), (0, 3), (2, 3), (1, 7), (3, 6), (0, 30)])
def test_the_pairs_that_a_run_meets_are_those_that_its_loader_gives(start: int, total: int) -> None:
    from torch.utils.data import DistributedSampler
    from torchdata.stateful_dataloader import StatefulDataLoader

    from services.trainer.verl.trainers.dpo import met_by

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
    from services.trainer.verl.trainers.dpo import batches

    assert list(batches([5, 6, 7, 8, 9], 2)) == [[5, 6], [7, 8], [9, 9]]
    assert list(batches([1, 2], 5)) == [[1, 2, 1, 2, 1]]
    assert list(batches([], 5)) == []


def test_an_adapter_is_merged_as_peft_merges_it(tiny_model: Path) -> None:
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification

    from services.trainer.verl.patches.classifier_engine import merged

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
    from services.trainer.verl.trainers.pairs import PairTrainer

    raw = {"train/loss": 0.5, "pairs": [[3.0, 1.0], [4.0]], "rewards/margin": [[6.0, 2.0], [-4.0]]}
    found = PairTrainer.metrics(None, raw)  # type: ignore[arg-type]
    assert found["train/loss"] == 0.5 and found["rewards/margin"] == (6 + 2 - 4) / 8


@pytest.fixture
def reward_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder as training leaves it, its new layer untrained."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    folder = tmp_path / "judge"
    AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def checked(weights: Path, folder: Path, probe: Any) -> tuple[Checkpoint, list[str], list[SampleBatch]]:
    """What the side process says of a reward model: three pairs are held out, the second of which is too long."""
    rows = [("12", "21"), ("1" * 30, "2"), ("3", "4")]
    validation = folder / "validation.jsonl"
    asked = [{"role": "user", "content": "21"}]
    with validation.open("w") as file:
        for row in rows:
            chosen, rejected = ([{"role": "assistant", "content": text}] for text in row)
            file.write(json.dumps({"prompt": asked, "chosen": chosen, "rejected": rejected}) + "\n")
    made = plan("reward_model", {"max_length": 16}, work_dir=str(folder), validation_path=str(validation))
    path = folder / SPOOL_FILE
    Checker(made, SpoolWriter(path)).handle(CheckRequest(step=1, path=str(weights), kind="reward", probe=probe))
    records, _ = read_from(path, 0)
    [found] = [record for record in records if isinstance(record, Checkpoint)]
    problems = [record.message for record in records if isinstance(record, Problem)]
    return found, problems, [record for record in records if isinstance(record, SampleBatch)]


def probe_of(folder: Path) -> Any:
    from services.models.probe import Probe, ask
    from services.trainer.verifier.pair_scores import RewardModelScorer

    return Probe(dtype="float32", logprobs=ask(RewardModelScorer(folder).model))


def test_a_reward_model_is_tried_on_pairs_and_scores_as_in_training(reward_model: Path, tmp_path: Path) -> None:
    found, problems, [shown] = checked(reward_model, tmp_path, probe_of(reward_model))
    assert (found.state, problems) == ("ready", [])
    assert found.metrics["verification/score_difference"] < 1e-6
    assert found.metrics["validation/pairs/count"] == 2
    assert [(one.row_index, one.completion) for one in shown.samples] == [(0, "12"), (0, "21"), (2, "3"), (2, "4")]
    margins = [shown.samples[place].score - shown.samples[place + 1].score for place in (0, 2)]
    assert found.metrics["validation/margin"] == pytest.approx(sum(margins) / 2)
    assert found.metrics["validation/accuracy"] == sum(margin > 0 for margin in margins) / 2


def without_its_layer(tensors: dict[str, Any]) -> None:
    del tensors["score.weight"]


def another_layer(tensors: dict[str, Any]) -> None:
    tensors["score.weight"] = -tensors["score.weight"]


def two_scores(tensors: dict[str, Any]) -> None:
    tensors["score.weight"] = torch.cat([tensors["score.weight"]] * 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (without_its_layer, "are missing"),
        (another_layer, "not what was trained"),
        (two_scores, "another shape: score.weight"),
    ],
)
def test_what_is_another_reward_model_is_corrupt(
    reward_model: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    from safetensors.torch import load_file, save_file

    probe = probe_of(reward_model)
    tensors = load_file(reward_model / "model.safetensors")
    change(tensors)
    save_file(tensors, reward_model / "model.safetensors", metadata={"format": "pt"})
    found, problems, shown = checked(reward_model, tmp_path, probe)
    assert found.state == "corrupt" and shown == [] and said in problems[0]
