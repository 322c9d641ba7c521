"""The loss of a reward model on pairs of a better and a worse answer. P pairs."""
# ruff: noqa: N803, N806  (axes stand in names)

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from services.trainer.training.tasks import RewardModelLoss


def bradley_terry(chosen_P: Tensor, rejected_P: Tensor, settings: RewardModelLoss) -> Tensor:
    """The loss of each pair, from the scores r of its answers: −log σ(r⁺ − r⁻ − margin) + c·(r⁺ + r⁻)².

    arXiv:2203.02155 section 3.5, with the margin of arXiv:2307.09288 section 3.2.2 and the centring of
    arXiv:2312.09244. Shifting all scores by a constant leaves the first term as it is; the second fixes the constant.
    """
    loss_P = -logsigmoid(chosen_P - rejected_P - settings.margin)
    return loss_P + settings.centre_coefficient * (chosen_P + rejected_P) ** 2
