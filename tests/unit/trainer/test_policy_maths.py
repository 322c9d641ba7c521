"""Advantages and losses as verl computes them under the settings of our plans, against the papers' formulas."""
# ruff: noqa: N803, N806  (axes stand in names: B answers, T tokens)

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from tests.unit.trainer.test_algorithms import plan  # noqa: E402

pytestmark = pytest.mark.usefixtures("verl_on_cpu")
LIMIT = 8
LENGTHS = (3, 5, 1, 5, 4, 2, 5, 4)
B, T = len(LENGTHS), max(LENGTHS)
# Two prompts of four answers, not next to each other.
GROUPS = ("a", "b", "a", "b", "a", "b", "a", "b")
REWARDS = (1.0, 0.0, 0.5, 1.0, -0.25, 0.0, 2.0, 0.75)
TOLERANCE = 1e-5


@pytest.fixture
def data() -> SimpleNamespace:
    """Fixed tensors of shape B, T in float64, padded on the right."""
    generator = torch.Generator().manual_seed(0)

    def noise(scale: float) -> Any:
        return scale * torch.randn(B, T, generator=generator, dtype=torch.float64)

    mask = (torch.arange(T)[None] < torch.tensor(LENGTHS)[:, None]).double()
    old = noise(1.0) - 2
    reference = old + noise(0.1)
    scores = torch.zeros(B, T, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        scores[row, length - 1] = REWARDS[row]
    # Ratios well beyond both sides of every clip, in rows of either sign.
    return SimpleNamespace(
        mask=mask, old=old, new=old + noise(0.5), reference=reference, scores=scores, values=noise(0.3) * mask
    )


def advantages(algorithm: str, data: SimpleNamespace, **params: Any) -> Any:
    """As verl's trainer has them: the KL penalty first, then the estimator, both as our plan sets them."""
    import numpy
    from verl import DataProto
    from verl.trainer.ppo.core_algos import FixedKLController
    from verl.trainer.ppo.ray_trainer import apply_kl_penalty
    from verl.trainer.ppo.v1.utils import compute_advantage_for_multi_trajectories

    verl = plan(algorithm, {"max_response_length": LIMIT, **params}).verl
    batch = DataProto.from_dict(
        {
            "token_level_scores": data.scores,
            "token_level_rewards": data.scores.clone(),
            "response_mask": data.mask,
            "values": data.values,
            "old_log_probs": data.old,
            "ref_log_prob": data.reference,
        },
        non_tensors={"uid": numpy.array(GROUPS, dtype=object)},
    )
    if verl["algorithm.use_kl_in_reward"]:
        controller: Any = FixedKLController(verl["algorithm.kl_ctrl.kl_coef"])
        batch, _ = apply_kl_penalty(batch, controller, verl["algorithm.kl_penalty"])
    from omegaconf import OmegaConf

    gamma = verl.get("algorithm.gamma", 1.0)
    compute_advantage_for_multi_trajectories(
        batch,
        batch_keys=[f"{group}_{row}_0" for row, group in enumerate(GROUPS)],
        adv_estimator=verl["algorithm.adv_estimator"],
        gamma=gamma,
        lam=verl.get("algorithm.lam", 1.0),
        norm_adv_by_std_in_grpo=verl.get("algorithm.norm_adv_by_std_in_grpo", True),
        config=OmegaConf.create({"gamma": gamma, "use_pf_ppo": False}),
    )
    return batch.batch


@cache
def verls_own() -> Any:
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer")


def loss(algorithm: str, data: SimpleNamespace, advantage_B_T: Any, **params: Any) -> Any:
    """The policy's loss by verl's own function, with the actor's configuration of our plan; gradient to `data.new`."""
    from omegaconf import OmegaConf, open_dict
    from verl.trainer.ppo.core_algos import get_policy_loss_fn
    from verl.utils.config import omega_conf_to_dataclass

    verl = plan(algorithm, {"max_response_length": LIMIT, **params}).verl
    config = verls_own().copy()
    with open_dict(config):
        for key, value in verl.items():
            OmegaConf.update(config, key, value, merge=True, force_add=True)
    OmegaConf.resolve(config)
    actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
    # What verl's worker adds: the sizes of the whole mini-batch.
    actor.global_batch_info.update(
        dp_size=1,
        batch_num_tokens=int(data.mask.sum()),
        global_batch_size=B,
        loss_scale_factor=actor.loss_scale_factor,
    )
    function: Any = get_policy_loss_fn(actor.policy_loss.loss_mode)
    value, _ = function(
        old_log_prob=data.old,
        log_prob=data.new,
        advantages=advantage_B_T,
        response_mask=data.mask,
        loss_agg_mode=actor.loss_agg_mode,
        config=actor,
    )
    return value


def close(found: Any, expected: Any) -> bool:
    return torch.allclose(found.double(), expected.double(), atol=TOLERANCE, rtol=0)


def others(row: int) -> list[int]:
    """The rows of the same prompt, itself among them."""
    return [other for other in range(B) if GROUPS[other] == GROUPS[row]]


def by_answer(values: list[float], mask: Any) -> Any:
    return torch.tensor(values, dtype=torch.float64)[:, None] * mask


def whitened(values: Any, mask: Any) -> Any:
    chosen = values[mask.bool()]
    return (values - chosen.mean()) / chosen.std() * mask


def test_grpo_advantages(data: SimpleNamespace) -> None:
    expected = []
    for row in range(B):
        group = torch.tensor([REWARDS[other] for other in others(row)], dtype=torch.float64)
        expected.append(float((REWARDS[row] - group.mean()) / (group.std() + 1e-6)))
    for algorithm in ("grpo", "gspo", "dapo"):
        assert close(advantages(algorithm, data)["advantages"], by_answer(expected, data.mask))


def test_dr_grpo_advantages(data: SimpleNamespace) -> None:
    expected = [REWARDS[row] - sum(REWARDS[other] for other in others(row)) / 4 for row in range(B)]
    assert close(advantages("dr_grpo", data)["advantages"], by_answer(expected, data.mask))


def test_rloo_advantages(data: SimpleNamespace) -> None:
    """The reward of an answer, less what its log-probability exceeds the reference's by, against the three others'."""
    kl_B = ((data.old - data.reference) * data.mask).sum(-1)
    reward = [REWARDS[row] - 0.03 * float(kl_B[row]) for row in range(B)]
    expected = []
    for row in range(B):
        rest = [reward[other] for other in others(row) if other != row]
        expected.append(reward[row] - sum(rest) / len(rest))
    assert close(advantages("rloo", data)["advantages"], by_answer(expected, data.mask))


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_plus_plus_advantages(data: SimpleNamespace, gamma: float) -> None:
    reward_B_T = (data.scores - 0.01 * (data.old - data.reference)) * data.mask
    returns = torch.zeros_like(reward_B_T)
    for t in range(T):
        for later in range(t, T):
            returns[:, t] += gamma ** (later - t) * reward_B_T[:, later]
    found = advantages("reinforce_plus_plus", data, gamma=gamma)["advantages"]
    assert close(found, whitened(returns, data.mask))


def test_reinforce_plus_plus_advantages_against_the_group(data: SimpleNamespace) -> None:
    kl_B = ((data.old - data.reference) * data.mask).sum(-1)
    reward = [REWARDS[row] - 0.01 * float(kl_B[row]) for row in range(B)]
    centred = [reward[row] - sum(reward[other] for other in others(row)) / 4 for row in range(B)]
    found = advantages("reinforce_plus_plus", data, group_baseline=True, samples_per_prompt=4)["advantages"]
    assert close(found, whitened(by_answer(centred, data.mask), data.mask))


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.5), (1.0, 0.0)])
def test_generalised_advantages(data: SimpleNamespace, gamma: float, gae_lambda: float) -> None:
    """Sums over later temporal differences, and the returns that the critic is to learn."""
    reward_B_T = data.scores - 0.02 * (data.old - data.reference) * data.mask
    expected = torch.zeros(B, T, dtype=torch.float64)
    for row, length in enumerate(LENGTHS):
        value = [*data.values[row, :length].tolist(), 0.0]
        delta = [float(reward_B_T[row, t]) + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            expected[row, t] = sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(length - t))
    found = advantages("ppo", data, gamma=gamma, gae_lambda=gae_lambda)
    assert close(found["returns"] * data.mask, (expected + data.values) * data.mask)
    assert close(found["advantages"] * data.mask, whitened(expected, data.mask))


def clipped_loss(data: SimpleNamespace, advantage_B_T: Any, low: float, high: float, dual: float) -> Any:
    """−min(ρ·A, clip(ρ)·A) token by token; where A < 0 no more than dual·|A|."""
    ratio = (data.new - data.old).exp()
    objective = torch.minimum(ratio * advantage_B_T, ratio.clamp(1 - low, 1 + high) * advantage_B_T)
    floor = torch.where(advantage_B_T < 0, dual * advantage_B_T, torch.full_like(objective, -torch.inf))
    return -torch.maximum(objective, floor)


def test_the_clipped_losses_and_their_aggregations(data: SimpleNamespace) -> None:
    length_B = torch.tensor(LENGTHS, dtype=torch.float64)
    for algorithm, high, mean in (
        ("grpo", 0.2, lambda token: token.sum() / length_B.sum()),
        ("ppo", 0.2, lambda token: token.sum() / length_B.sum()),
        ("reinforce_plus_plus", 0.2, lambda token: token.sum() / length_B.sum()),
        # The upper bound alone is raised.
        ("dapo", 0.28, lambda token: token.sum() / length_B.sum()),
        ("rloo", 0.2, lambda token: token.sum(-1).mean()),
        # By the limit of an answer, not by the longest of the batch.
        ("dr_grpo", 0.2, lambda token: token.sum(-1).mean() / LIMIT),
    ):
        advantage_B_T = advantages(algorithm, data)["advantages"]
        data.new = data.new.detach().requires_grad_()
        expected = mean(clipped_loss(data, advantage_B_T, 0.2, high, 3.0) * data.mask)
        found = loss(algorithm, data, advantage_B_T)
        assert close(found, expected), algorithm
        [gradient] = torch.autograd.grad(found, data.new)
        [wanted] = torch.autograd.grad(expected, data.new)
        assert close(gradient, wanted), algorithm


def test_the_dual_clip_is_felt_where_it_is_low(data: SimpleNamespace) -> None:
    advantage_B_T = advantages("grpo", data)["advantages"]
    expected = (clipped_loss(data, advantage_B_T, 0.2, 0.2, 1.1) * data.mask).sum() / data.mask.sum()
    found = loss("grpo", data, advantage_B_T, dual_clip=1.1)
    assert close(found, expected)
    assert not close(found, loss("grpo", data, advantage_B_T))


def test_the_gspo_loss(data: SimpleNamespace) -> None:
    """Equations 5 and 7: one ratio an answer; its gradient reaches every token through their mean log-probability."""
    data.new = (data.old + 0.01 * (data.new - data.old)).detach().requires_grad_()
    length_B = torch.tensor(LENGTHS, dtype=torch.float64)
    advantage_B_T = advantages("gspo", data)["advantages"]
    advantage_B = advantage_B_T[:, 0]
    ratio_B = (((data.new - data.old) * data.mask).sum(-1) / length_B).exp()
    objective_B = torch.minimum(ratio_B * advantage_B, ratio_B.clamp(1 - 3e-4, 1 + 4e-4) * advantage_B)
    # Neither all nor none is clipped, else the test would not see by what.
    assert 0 < int((objective_B < ratio_B * advantage_B).sum()) < B
    expected, found = -objective_B.mean(), loss("gspo", data, advantage_B_T)
    assert close(found, expected)
    [gradient] = torch.autograd.grad(found, data.new)
    [wanted] = torch.autograd.grad(expected, data.new)
    assert close(gradient, wanted)


def test_the_critics_loss(data: SimpleNamespace) -> None:
    """½·max((V − R)², (V clipped around its old value − R)²), a mean over tokens."""
    from verl.trainer.ppo.core_algos import compute_value_loss

    clip = plan("ppo", {"critic": {"value_clip": 0.1}}).verl["critic.cliprange_value"]
    returns, values = advantages("ppo", data)["returns"], data.values + 0.3 * (data.new - data.old)
    moved = data.values + (values - data.values).clamp(-0.1, 0.1)
    worse = torch.maximum((values - returns) ** 2, (moved - returns) ** 2)
    found, _ = compute_value_loss(values, returns, data.values, data.mask, clip, "token-mean")
    assert close(found, 0.5 * (worse * data.mask).sum() / data.mask.sum())


@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        ("kl", lambda d: d),
        ("low_var_kl", lambda d: (-d).exp() + d - 1),
        ("mse", lambda d: 0.5 * d**2),
        ("abs", lambda d: d.abs()),
    ],
)
def test_the_estimators_of_the_kl(data: SimpleNamespace, kind: str, formula: Any) -> None:
    """k1, k3, k2 of Schulman's note, and the absolute value, of d = log π − log π_ref."""
    from verl.trainer.ppo.core_algos import kl_penalty

    made = plan("ppo", {"kl_kind": kind}).verl["algorithm.kl_penalty"]
    assert close(kl_penalty(data.old, data.reference, made), formula(data.old - data.reference))
