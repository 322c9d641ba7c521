"""Losses on pairs, and their gradients, against TRL's code on fixed tensors. B pairs, R = 2B rows, T tokens a row."""
# ruff: noqa: N803, N806  (axes stand in names)

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from torch import Tensor  # noqa: E402

from services.trainer.losses.bradley_terry import bradley_terry  # noqa: E402
from services.trainer.losses.dpo import Answers, pair_losses, sum_answers  # noqa: E402
from services.trainer.training.tasks import DpoLoss, RewardModelLoss  # noqa: E402

B, T = 5, 9
# TRL 1.16 asks of an accelerator only that it gathers from other processes.
ALONE = SimpleNamespace(gather=lambda value: value, gather_for_metrics=lambda value: value, device="cpu")


class Case:
    """Rows of several lengths: chosen and rejected in turn; per-token log-probabilities are the leaf."""

    def __init__(self, seed: int) -> None:
        random = torch.Generator().manual_seed(seed)
        self.length_R = torch.randint(4, T + 1, (2 * B,), generator=random)
        self.prompt_R = torch.randint(1, 3, (2 * B,), generator=random)
        place_T = torch.arange(T)
        self.mask_R_T = ((place_T >= self.prompt_R[:, None]) & (place_T < self.length_R[:, None])).long()
        # Of token t + 1 at place t, as models give them.
        self.logp_R_T = (-3 * torch.rand(2 * B, T - 1, generator=random)).requires_grad_()
        self.reference_R = -10 * torch.rand(2 * B, generator=random)

    def answers(self) -> tuple[Answers, Answers]:
        """As the training workers make them: rows end to end, and something in the place that belongs to no row."""
        joint = torch.tensor([7.0])
        rows = zip(self.logp_R_T, self.length_R.tolist(), strict=True)
        logp_T = torch.cat([part for row, length in rows for part in (row[: length - 1], joint)])
        mask_T = torch.cat([row[:length] for row, length in zip(self.mask_R_T, self.length_R.tolist(), strict=True)])
        offsets = torch.cat([torch.zeros(1, dtype=torch.long), self.length_R.cumsum(0)])
        logp_R, length_R = sum_answers(logp_T, mask_T, offsets)
        return tuple(Answers(logp_R[s::2], self.reference_R[s::2], length_R[s::2]) for s in (0, 1))  # type: ignore[return-value]

    def in_halves(self, values_R: Tensor) -> Tensor:
        """TRL wants all chosen rows, then all rejected."""
        return torch.cat([values_R[0::2], values_R[1::2]])


def gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    return torch.autograd.grad(loss, leaf, retain_graph=True)[0]


def trl_dpo(case: Case, kind: str, beta: float) -> tuple[Tensor, dict[str, float]]:
    """The loss and the metrics of TRL's DPOTrainer, whose model is one that gives our log-probabilities."""
    from trl.trainer.dpo_trainer import DPOTrainer

    mask = case.in_halves(case.mask_R_T)
    logps = case.in_halves(case.logp_R_T) * mask[:, 1:]

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            none = torch.zeros_like(logps)
            return SimpleNamespace(log_probs=logps, entropy=none, mean_logits=none, is_top1=none.bool())

    reference = case.in_halves(case.reference_R)
    trainer = SimpleNamespace(
        model=Model(), accelerator=ALONE, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True,
        f_divergence_type="reverse_kl", loss_types=[kind], loss_weights=[1.0], beta=beta, use_weighting=False,
        label_smoothing=0.0, _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {
        "input_ids": torch.ones_like(mask), "attention_mask": torch.ones_like(mask), "completion_mask": mask,
        "ref_chosen_logps": reference[:B], "ref_rejected_logps": reference[B:],
    }  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, trainer.model, inputs, return_outputs=False)  # type: ignore[arg-type]
    return loss, {name: values[-1] for name, values in trainer._metrics["train"].items()}


def trl_cpo(sides: list[Tensor], kind: str, beta: float, gamma: float, smoothing: float) -> Tensor:
    """TRL's function of what chosen and rejected have: SimPO is in it, and label smoothing of the sigmoid."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = SimpleNamespace(
        accelerator=ALONE, beta=beta, loss_type=kind, label_smoothing=smoothing, simpo_gamma=gamma, alpha=0.0
    )
    return CPOTrainer.cpo_loss(trainer, *sides)[0].mean()  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kind", "beta"), [("sigmoid", 0.1), ("sigmoid", 2.0), ("hinge", 0.1), ("ipo", 0.5)])
def test_loss_gradient_and_rewards_are_those_of_trl(kind: Any, beta: float, seed: int) -> None:
    case = Case(seed)
    ours = pair_losses(*case.answers(), DpoLoss(kind, beta))
    theirs, metrics = trl_dpo(case, kind, beta)
    assert ours.loss_P.mean().item() == pytest.approx(theirs.item(), abs=1e-5)
    ours_gradient = gradient(ours.loss_P.mean(), case.logp_R_T)
    assert torch.allclose(ours_gradient, gradient(theirs, case.logp_R_T), atol=1e-5)
    assert ours_gradient.abs().max() > 0
    for side, found_P in (("chosen", ours.chosen_reward_P), ("rejected", ours.rejected_reward_P)):
        assert found_P.mean().item() == pytest.approx(metrics[f"rewards/{side}"], abs=1e-5)
    accuracy = (ours.chosen_reward_P > ours.rejected_reward_P).float().mean().item()
    assert accuracy == pytest.approx(metrics["rewards/accuracies"])


@pytest.mark.parametrize("seed", range(3))
def test_label_smoothing_is_that_of_trl(seed: int) -> None:
    case = Case(seed)
    chosen, rejected = case.answers()
    settings = DpoLoss("sigmoid", beta=0.3, label_smoothing=0.2)
    ours = pair_losses(chosen, rejected, settings).loss_P.mean()
    ratios = [side.logp_P - side.reference_logp_P for side in (chosen, rejected)]
    theirs = trl_cpo(ratios, "sigmoid", 0.3, 0.0, 0.2)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(gradient(ours, case.logp_R_T), gradient(theirs, case.logp_R_T), atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_simpo_is_that_of_trl_and_knows_no_reference(seed: int) -> None:
    case = Case(seed)
    case.reference_R = torch.zeros(2 * B)
    chosen, rejected = case.answers()
    ours = pair_losses(chosen, rejected, DpoLoss("simpo", beta=2.0, gamma=0.7)).loss_P.mean()
    means = [side.logp_P / side.length_P for side in (chosen, rejected)]
    theirs = trl_cpo(means, "simpo", 2.0, 0.7, 0.0)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(gradient(ours, case.logp_R_T), gradient(theirs, case.logp_R_T), atol=1e-5)


@pytest.mark.parametrize(("margin", "centre"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.01), (1.0, 0.1)])
def test_the_loss_of_a_reward_model_is_that_of_trl(margin: float, centre: float) -> None:
    from trl.trainer.reward_trainer import RewardTrainer

    score_R = torch.randn(2 * B, generator=torch.Generator().manual_seed(0)).requires_grad_()
    ours = bradley_terry(score_R[:B], score_R[B:], RewardModelLoss(margin, centre)).mean()

    class Model:
        training = True

        def __call__(self, **_: Any) -> Any:
            return SimpleNamespace(logits=score_R[:, None])

    trainer = SimpleNamespace(
        model=Model(), accelerator=ALONE, args=SimpleNamespace(center_rewards_coefficient=centre or None),
        _metrics=defaultdict(lambda: defaultdict(list)), _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    inputs = {"attention_mask": torch.ones(2 * B, T)} | ({"margin": torch.full((B,), margin)} if margin else {})
    theirs: Any = RewardTrainer.compute_loss(trainer, trainer.model, inputs)  # type: ignore[arg-type]
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-5)
    assert torch.allclose(gradient(ours, score_R), gradient(theirs, score_R), atol=1e-5)


def test_only_the_answers_tokens_count() -> None:
    logp_T = torch.tensor([1.0, 2, 4, 8, 16, 32, 64])
    mask_T = torch.tensor([0, 0, 1, 1, 1, 0, 1])
    # The second row begins with a token of its answer, as no row of ours does: nothing comes before it to score it.
    logp_R, length_R = sum_answers(logp_T, mask_T, torch.tensor([0, 4, 7]))
    assert logp_R.tolist() == [2 + 4, 32] and length_R.tolist() == [2, 1]
