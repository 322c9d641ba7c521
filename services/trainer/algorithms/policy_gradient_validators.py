"""Checks of what answers prompts and learns from what the answers are worth."""

from __future__ import annotations

from services.mesh.errors import Violation
from services.mesh.validation.partial import collect_violations
from services.trainer.algorithms.memory import FLOAT, ForwardPass, Taken, width
from services.trainer.algorithms.overrides import VLLM_ONLY, flat
from services.trainer.algorithms.policy_gradient import (
    DATASET_FORMATS,
    PolicyParams,
    micro_batch_size,
    mini_batch_answers,
    rollout_engine,
)
from services.trainer.algorithms.validators import (
    check_common,
    check_divides,
    check_length,
    check_memory,
    check_reward,
    check_share,
)
from services.trainer.training.launch_plan import JobFacts


def check_policy(params: PolicyParams, facts: JobFacts, critics: int = 0) -> list[Violation]:
    """`critics` counts models that are trained besides the policy."""
    return collect_violations(
        lambda: check_common(params, DATASET_FORMATS, facts, "prompts_per_step"),
        lambda: check_reward(params.held_out_reward, facts, "held_out_reward") if params.held_out_reward else [],
        lambda: _check_mini_batch(params),
        lambda: check_divides("slots", facts.slots, mini_batch_answers(params), "the answers of a mini-batch"),
        lambda: check_answers_a_pass("micro_batch_size", params.micro_batch_size, params, facts),
        lambda: _check_engine(params, facts),
        lambda: _check_engine_settings(params, facts),
        lambda: _check_kl_kind(params),
        lambda: _check_both_lengths(params, facts),
        lambda: _check_memory(params, facts, critics),
    )


def check_answers_a_pass(field: str, size: int | None, params: PolicyParams, facts: JobFacts) -> list[Violation]:
    """That forward passes of `size` answers divide what a slot has of a mini-batch."""
    if size is None:
        return []
    return check_share(field, size, mini_batch_answers(params), facts, "the answers of one slot")


def _check_mini_batch(params: PolicyParams) -> list[Violation]:
    if params.mini_batch_size is None:
        return []
    return check_divides("mini_batch_size", params.mini_batch_size, params.prompts_per_step, "prompts_per_step")


def _check_engine(params: PolicyParams, facts: JobFacts) -> list[Violation]:
    if facts.device != "cpu" or params.rollout_engine != "vllm":
        return []
    return [Violation("rollout_engine", "must be auto or transformers on a machine without a GPU")]


def _check_engine_settings(params: PolicyParams, facts: JobFacts) -> list[Violation]:
    engine = rollout_engine(params, facts.device)
    if engine == "vllm":
        return []
    message = (
        f"has no effect on a rollout by {engine}, which this job has: vllm alone reads it, on a machine with a GPU"
    )
    return [
        Violation(f"verl_overrides.{name}", message) for name, _ in flat(params.verl_overrides) if name in VLLM_ONLY
    ]


def _check_kl_kind(params: PolicyParams) -> list[Violation]:
    if params.kl_coefficient == 0 or (params.kl_in, params.kl_kind) != ("loss", "kl"):
        return []
    message = "as a loss its gradient is 0 on average: use low_var_kl or mse, or subtract it from the reward"
    return [Violation("kl_kind", message)]


def _check_both_lengths(params: PolicyParams, facts: JobFacts) -> list[Violation]:
    prompt, response = params.max_prompt_length, params.max_response_length
    if prompt is not None and response is not None:
        made_of = f" ({response} and max_prompt_length {prompt})"
        return check_length("max_response_length", prompt + response, facts, made_of)
    # The one that is null is fitted to what the other leaves of the context, and takes one token at least.
    given = "max_prompt_length" if response is None else "max_response_length"
    return check_length(given, (prompt or response or 0) + 1, facts, ", with one for the other side,")


def _check_memory(params: PolicyParams, facts: JobFacts, critics: int) -> list[Violation]:
    one_pass = ForwardPass(micro_batch_size(params, facts), params.prompt_tokens)
    return check_memory(params, facts, one_pass, _beside(params, facts, critics))


def _beside(params: PolicyParams, facts: JobFacts, critics: int) -> list[Taken]:
    """What is there while the policy learns, as far as it stays on the device."""
    count, found = facts.model_parameters or 0, []
    # vLLM lets its weights go meanwhile.
    if rollout_engine(params, facts.device) == "transformers":
        found.append(Taken("the rollout's weights", width(params, facts) * count))
    if params.kl_coefficient > 0 and params.lora is None and params.offload != "all":
        found.append(Taken("the reference", FLOAT * count / facts.slots, ("kl_coefficient",)))
    if critics and params.offload == "none":
        own = facts.critic.model_parameters if facts.critic is not None else None
        found.append(Taken("the critic's weights and moments", critics * 3 * FLOAT * (own or count) / facts.slots))
    return found


def check_whitened(params: PolicyParams) -> list[Violation]:
    """Advantages that are normalised over a step have no deviation where it is a single token."""
    if params.prompts_per_step * params.samples_per_prompt > 1:
        return []
    return [Violation("prompts_per_step", "must be at least 2 with one answer a prompt")]
