"""Held-out losses against plain torch, a row at a time, and against TRL's. B rows, T tokens."""
# ruff: noqa: N806  (axes stand in names)

from __future__ import annotations

import math
import random
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from torch import Tensor  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from transformers import LlamaConfig, LlamaForCausalLM  # noqa: E402

from services.mesh.runs.spool import Problem, SpoolWriter, read_from  # noqa: E402
from services.models import loading  # noqa: E402
from services.trainer.training.tasks import DpoLoss, RewardModelLoss  # noqa: E402
from services.trainer.verifier import held_out_loss  # noqa: E402
from services.trainer.verifier.held_out_loss import Answered, HeldOut, Side, ask, pair_metrics, token_metrics  # noqa: E402
from services.trainer.verifier.pair_scores import ScoredPair, summarise  # noqa: E402
from tests.unit.trainer.test_algorithms import plan  # noqa: E402

VOCABULARY = 40


def model(seed: int, spread: float = 0.5) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=spread,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def sides(count: int, seed: int = 0) -> list[Side]:
    """Of several lengths; the learnt tokens are in one or two turns, as those of a conversation."""
    numbers = random.Random(seed)
    made = []
    for _ in range(count):
        length = numbers.randint(6, 40)
        tokens = [numbers.randrange(VOCABULARY) for _ in range(length)]
        start = numbers.randint(1, length - 2)
        made.append(Side(tokens, [int(at >= start and (at % 7 != 0 or at == start)) for at in range(length)]))
    return made


@torch.no_grad()
def logps(model: LlamaForCausalLM, side: Side) -> Tensor:
    """Of each learnt token, by plain torch: no padding, no batch."""
    logits_T_V = model(torch.tensor([side.tokens])).logits[0, :-1].float()
    taken = -cross_entropy(logits_T_V, torch.tensor(side.tokens[1:]), reduction="none")
    return taken[torch.tensor(side.mask[1:]).bool()]


@pytest.mark.parametrize("room", [1, 90 * VOCABULARY, 1 << 27])
def test_batches_of_any_size_give_what_single_rows_give(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    monkeypatch.setattr(held_out_loss, "LOGITS", room)
    asked, rows = model(0), sides(17)
    found = ask(asked, rows)
    expected = [logps(asked, side) for side in rows]
    assert found.logp_R.tolist() == pytest.approx([float(one.double().sum()) for one in expected], abs=1e-4)
    assert found.length_R.tolist() == [len(one) for one in expected]


def test_the_loss_is_the_mean_over_all_learnt_tokens() -> None:
    asked, rows = model(0), sides(9)
    metrics = token_metrics(ask(asked, rows))
    every = torch.cat([logps(asked, side) for side in rows])
    assert metrics["validation/loss"] == pytest.approx(-float(every.mean()), abs=1e-5)
    # Rows of unlike lengths: the mean of their means is another number.
    assert abs(metrics["validation/loss"] + sum(float(logps(asked, side).mean()) for side in rows) / 9) > 1e-3
    assert metrics["validation/perplexity"] == pytest.approx(math.exp(metrics["validation/loss"]))
    assert metrics["validation/tokens/count"] == len(every) == sum(sum(side.mask[1:]) for side in rows)


def test_what_learns_nothing_has_no_loss_and_what_is_hopeless_has_an_infinite_perplexity() -> None:
    nothing = Side([1, 2, 3], [0, 0, 0])
    assert token_metrics(ask(model(0), [nothing])) == {"validation/tokens/count": 0.0}
    # The first token is predicted by nothing.
    assert token_metrics(ask(model(0), [Side([1, 2, 3], [1, 0, 0])])) == {"validation/tokens/count": 0.0}
    hopeless = Answered(torch.tensor([-2000.0]), torch.tensor([2.0]))
    assert token_metrics(hopeless)["validation/perplexity"] == math.inf


def trl_dpo(policy: Any, reference: Any, pairs: list[tuple[Side, Side]], kind: str, beta: float) -> dict[str, float]:
    """The loss and the metrics of TRL's DPOTrainer on padded rows, all chosen ones first."""
    from trl.trainer.dpo_trainer import DPOTrainer

    rows = [chosen for chosen, _ in pairs] + [rejected for _, rejected in pairs]
    width = max(len(side.tokens) for side in rows)

    def padded(parts: list[list[int]]) -> Tensor:
        return torch.tensor([part + [0] * (width - len(part)) for part in parts])

    token_R_T, mask_R_T = padded([side.tokens for side in rows]), padded([side.mask for side in rows])
    there_R_T = padded([[1] * len(side.tokens) for side in rows])

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            with torch.no_grad():
                logits = policy(input_ids=token_R_T, attention_mask=there_R_T).logits[:, :-1].log_softmax(-1)
            taken = logits.gather(-1, token_R_T[:, 1:, None]).squeeze(-1) * mask_R_T[:, 1:]
            none = torch.zeros_like(taken)
            return SimpleNamespace(log_probs=taken, entropy=none, mean_logits=none, is_top1=none.bool())

    references = torch.stack([logps(reference, side).sum() for side in rows])
    alone = SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value, device="cpu")
    trainer = SimpleNamespace(
        model=Model(), accelerator=alone, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=beta, use_weighting=False,
        label_smoothing=0.0, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": token_R_T, "attention_mask": there_R_T, "completion_mask": mask_R_T,
        "ref_chosen_logps": references[: len(pairs)], "ref_rejected_logps": references[len(pairs) :],
    }  # fmt: skip
    loss: Any = DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False)  # type: ignore[arg-type]
    told = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return {
        "validation/pairs/count": len(pairs),
        "validation/loss": loss.item(),
        "validation/accuracy": told["rewards/accuracies"],
        "validation/margin": told["rewards/margins"],
    }


@pytest.mark.parametrize(("kind", "beta"), [("sigmoid", 0.1), ("hinge", 0.1), ("ipo", 0.5)])
def test_pairs_are_measured_as_trl_measures_them(tmp_path: Path, kind: Any, beta: float) -> None:
    pytest.importorskip("trl")
    policy, reference, rows = model(1), model(2), sides(14, seed=5)
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    expected = trl_dpo(policy, reference, pairs, kind, beta)
    assert 0 < expected["validation/accuracy"] < 1 and abs(expected["validation/margin"]) > 0.1

    reference.save_pretrained(tmp_path / "base")
    held_out_loss.write(tmp_path, pairs)
    settings = {"loss_type": kind, "beta": beta}
    run = plan("dpo", settings, work_dir=str(tmp_path), model_path=str(tmp_path / "base"))
    # Asked as step 0, and by a run that has been taken up again, which has no step 0.
    whole, resumed = HeldOut(run), HeldOut(run)
    first = whole.measure(reference, is_base=True)
    assert first["validation/margin"] == 0 and first["validation/accuracy"] == 0
    resumed.prepare()
    for held_out in (whole, resumed):
        assert held_out.measure(policy, is_base=False) == pytest.approx(expected, abs=1e-4)


def test_simpo_has_no_reference(tmp_path: Path) -> None:
    pairs = list(zip(sides(4)[::2], sides(4)[1::2], strict=True))
    held_out_loss.write(tmp_path, pairs)
    held_out = HeldOut(plan("dpo", {"loss_type": "simpo"}, work_dir=str(tmp_path), model_path="/nowhere"))
    held_out.prepare()
    policy = model(3)
    means = [[float(logps(policy, side).mean()) for side in pair] for pair in pairs]
    found = held_out.measure(policy, is_base=False)
    assert found["validation/margin"] == pytest.approx(sum(2 * (a - b) for a, b in means) / 2, abs=1e-5)
    loss = sum(math.log1p(math.exp(-(2 * (a - b) - 1))) for a, b in means) / 2
    assert found["validation/loss"] == pytest.approx(loss, abs=1e-5)


def test_a_reference_that_does_not_load_is_told_where_the_loss_is_asked_for(tmp_path: Path) -> None:
    held_out_loss.write(tmp_path, [(sides(1)[0], sides(1)[0])])
    held_out = HeldOut(plan("dpo", {}, work_dir=str(tmp_path), model_path=str(tmp_path / "gone")))
    held_out.prepare()
    with pytest.raises(OSError):
        held_out.measure(model(0), is_base=False)
    # Once it loads, or has been asked as step 0, there is a loss.
    model(1).save_pretrained(tmp_path / "gone")
    asked = HeldOut(plan("dpo", {}, work_dir=str(tmp_path), model_path="/nowhere"))
    asked.prepare()
    asked.measure(model(1), is_base=True)
    held_out.prepare()
    found = held_out.measure(model(0), is_base=False)
    assert found == pytest.approx(asked.measure(model(0), is_base=False)) and "validation/loss" in found


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_rows_that_cannot_be_read_are_told_where_the_loss_is_asked_for(name: str, tmp_path: Path) -> None:
    (tmp_path / held_out_loss.HELD_OUT_FILE).write_bytes(b"\xc1")
    held_out = HeldOut(plan(name, {}, work_dir=str(tmp_path), model_path="/nowhere"))
    held_out.prepare()
    with pytest.raises(msgspec.DecodeError):
        held_out.measure(model(0), is_base=False)


def test_rows_that_cannot_be_written_are_told_and_leave_nothing(tmp_path: Path) -> None:
    from services.trainer.verl.verification.held_out import write_held_out

    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}\n')
    run = plan("sft", {}, work_dir=str(tmp_path), validation_path=str(rows))
    (tmp_path / f".{held_out_loss.HELD_OUT_FILE}.partial").mkdir()
    write_held_out(run, SpoolWriter(tmp_path / "spool"), "messages", lambda *_: [1], lambda _: (sides(1)[0],))
    [problem], _ = read_from(tmp_path / "spool", 0)
    assert isinstance(problem, Problem) and problem.reason == "VALIDATION_SKIPPED"
    assert "Is a directory" in problem.message and held_out_loss.read(tmp_path) == []


def test_a_base_in_bf16_is_measured_as_training_computes(tmp_path: Path) -> None:
    """Training in fp32 loads it so, and its checkpoints are fp32."""
    model(4).bfloat16().save_pretrained(tmp_path / "base")

    def stored(dtype: str = "auto") -> Any:
        return LlamaForCausalLM.from_pretrained(tmp_path / "base", dtype=dtype).eval()

    held_out_loss.write(tmp_path, [(side,) for side in sides(5)])
    wanted = token_metrics(ask(stored("float32"), sides(5)))
    rounded = token_metrics(ask(stored(), sides(5)))
    assert rounded != pytest.approx(wanted, rel=1e-5)
    run = plan("sft", {}, work_dir=str(tmp_path))
    assert HeldOut(run).measure(stored(), is_base=True) == pytest.approx(wanted, rel=1e-6)
    # What trains adapters in bf16 computes so.
    adapters = plan("sft", {"lora": {}}, device="cuda", work_dir=str(tmp_path))
    assert HeldOut(adapters).measure(stored(), is_base=True) == rounded


def test_a_run_without_held_out_rows_has_no_loss(tmp_path: Path) -> None:
    held_out = HeldOut(plan("grpo", {}, work_dir=str(tmp_path)))
    held_out.prepare()
    assert held_out.measure(model(0), is_base=False) == {}


@pytest.mark.parametrize(("margin", "centre"), [(0.0, 0.0), (0.5, 0.02)])
def test_a_reward_model_has_the_loss_that_it_is_trained_with(margin: float, centre: float) -> None:
    scores = [(1.5, 0.5), (-0.25, 0.75), (2.0, 2.0)]
    pairs = [ScoredPair(index, "q", "a", "b", *pair) for index, pair in enumerate(scores)]
    metrics = summarise(pairs, RewardModelLoss(margin, centre))
    loss = sum(math.log1p(math.exp(-(a - b - margin))) + centre * (a + b) ** 2 for a, b in scores) / 3
    assert metrics["validation/loss"] == pytest.approx(loss)
    assert metrics["validation/accuracy"] == pytest.approx(1 / 3) and metrics["validation/margin"] == pytest.approx(0)
    assert "validation/loss" not in summarise([], RewardModelLoss())


def test_equal_rewards_count_as_wrong() -> None:
    same = Answered(torch.tensor([-3.0, -3.0]).double(), torch.tensor([2.0, 2.0]).double())
    metrics = pair_metrics(same, same, DpoLoss("sigmoid", 0.1))
    assert metrics["validation/accuracy"] == 0
    assert metrics["validation/loss"] == pytest.approx(math.log(2))


def test_positions_stay_exact_where_weights_are_cast() -> None:
    cast = loading.cast(model(0), torch.bfloat16)
    assert {parameter.dtype for parameter in cast.parameters()} == {torch.bfloat16}
    assert torch.equal(cast.model.rotary_emb.inv_freq, model(0).model.rotary_emb.inv_freq)
    assert not torch.equal(model(0).bfloat16().model.rotary_emb.inv_freq.float(), cast.model.rotary_emb.inv_freq)
