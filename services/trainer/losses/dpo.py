"""Losses on pairs of a better and a worse answer. P pairs; log-probabilities are sums over the answer's tokens."""
# ruff: noqa: N803, N806, N815  (axes stand in names)

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from services.trainer.training.tasks import DpoLoss


@dataclass(frozen=True)
class Answers:
    """One side of P pairs: under the policy, under the reference (zeros where there is none), and how many tokens."""

    logp_P: Tensor
    reference_logp_P: Tensor
    length_P: Tensor


@dataclass(frozen=True)
class PairLosses:
    """`loss_P` has a gradient; the implicit rewards are detached."""

    loss_P: Tensor
    chosen_reward_P: Tensor
    rejected_reward_P: Tensor


def sum_answers(logp_T: Tensor, mask_T: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probability and length of the answer of each of R rows that lie end to end in T tokens.

    `logp_T[t]` is that of token t + 1, as verl's engine gives it, `mask_T[t]` is 1 where token t belongs to the answer,
    row r is offsets[r] to offsets[r + 1].
    """
    weight_T = torch.roll(mask_T, -1).to(logp_T.dtype)
    # The last place of a row would score the first token of the next.
    weight_T[offsets[1:] - 1] = 0
    row_T = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=logp_T.device), offsets.diff())
    zero_R = torch.zeros(len(offsets) - 1, dtype=logp_T.dtype, device=logp_T.device)
    return zero_R.index_add(0, row_T, logp_T * weight_T), zero_R.index_add(0, row_T, weight_T)


def pair_losses(chosen: Answers, rejected: Answers, settings: DpoLoss) -> PairLosses:
    """The loss of each pair, and the reward that the policy implies for each answer.

    With s the log-ratio of policy to reference of an answer, s̄ = s divided by the answer's tokens, h = s⁺ − s⁻:

    - sigmoid: −(1−ε)·log σ(β·h) − ε·log σ(−β·h), arXiv:2305.18290 equation 7; ε is `label_smoothing`
    - hinge: max(0, 1 − β·h), arXiv:2305.10425 section 2 with the margin at 1
    - ipo: (s̄⁺ − s̄⁻ − 1/(2β))², arXiv:2310.12036 equation 17. The mean over tokens stands in no formula of the paper;
      its authors told TRL's that their results were had with it
    - simpo: −log σ(β·(mean log π⁺ − mean log π⁻) − γ), arXiv:2405.14734 equation 6

    The reward of an answer is β·s; that of simpo is β·mean log π.
    """
    beta = settings.beta
    chosen_score_P = chosen.logp_P - chosen.reference_logp_P
    rejected_score_P = rejected.logp_P - rejected.reference_logp_P
    chosen_mean_P = chosen_score_P / chosen.length_P.clamp(min=1)
    rejected_mean_P = rejected_score_P / rejected.length_P.clamp(min=1)
    difference_P = chosen_score_P - rejected_score_P
    if settings.kind == "simpo":
        loss_P = -logsigmoid(beta * (chosen_mean_P - rejected_mean_P) - settings.gamma)
        return PairLosses(loss_P, beta * chosen_mean_P.detach(), beta * rejected_mean_P.detach())
    if settings.kind == "ipo":
        loss_P = (chosen_mean_P - rejected_mean_P - 1 / (2 * beta)) ** 2
    elif settings.kind == "hinge":
        loss_P = torch.relu(1 - beta * difference_P)
    else:
        wrong = settings.label_smoothing
        loss_P = -(1 - wrong) * logsigmoid(beta * difference_P) - wrong * logsigmoid(-beta * difference_P)
    return PairLosses(loss_P, beta * chosen_score_P.detach(), beta * rejected_score_P.detach())
