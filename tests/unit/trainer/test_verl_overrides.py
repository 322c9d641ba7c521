"""Settings of verl that a job may change: which, of what type, and that they come last."""

from __future__ import annotations

from typing import Any

import pytest

from services.trainer.algorithms import algorithms, schema
from services.trainer.algorithms.overrides import open_settings, settings
from tests.unit.trainer.test_algorithms import check, plan

LOSS = "actor_rollout_ref.actor.policy_loss.loss_mode"
MAY_NOT = "is no setting of verl that a job may change"


@pytest.mark.parametrize(
    ("algorithm", "overrides"),
    [
        ("sft", {"optim.lr_warmup_steps": 10}),
        ("dpo", {"engine.reshard_after_forward": False}),
        ("grpo", {"actor_rollout_ref.actor.tau_pos": 1}),
        ("grpo", {"actor_rollout_ref": {"actor": {"tau_pos": 1.5}, "rollout.max_num_seqs": 8}}),
        ("grpo", {"algorithm.rollout_correction.rollout_is": None}),
        ("ppo", {"critic.shuffle": True}),
    ],
)
def test_an_open_setting_reaches_the_plan(algorithm: str, overrides: dict[str, Any]) -> None:
    assert check(algorithm, {"verl_overrides": overrides}) == {}
    before, after = plan(algorithm, {}).verl, plan(algorithm, {"verl_overrides": overrides}).verl
    changed = {key for key, value in after.items() if before.get(key, ...) != value}
    # Log-probabilities are computed again where a correction is to be taken from them.
    changed.discard("algorithm.rollout_correction.bypass_mode")
    assert changed and changed <= settings()["ppo_trainer"].keys() | settings()["sft_trainer_engine"].keys()


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_a_setting_that_the_rollout_does_not_read_is_refused(algorithm: str) -> None:
    params = {"verl_overrides": {"actor_rollout_ref": {"rollout": {"gpu_memory_utilization": 0.4, "ignore_eos": True}}}}
    for device, engine in (("cpu", "auto"), ("cuda", "transformers")):
        found = check(algorithm, {**params, "rollout_engine": engine}, device=device)
        names = {
            f"verl_overrides.actor_rollout_ref.rollout.{name}" for name in ("gpu_memory_utilization", "ignore_eos")
        }
        assert found.keys() == names
        assert all("no effect on a rollout by transformers" in text and "vllm alone" in text for text in found.values())
    assert check(algorithm, params, device="cuda") == {}


def test_a_jobs_setting_wins_over_the_algorithms() -> None:
    key = "algorithm.norm_adv_by_std_in_grpo"
    assert plan("dr_grpo", {"verl_overrides": {key: True}}).verl[key] is True


@pytest.mark.parametrize(
    "name",
    [
        "trainer.default_local_dir",
        "trainer.resume_from_path",
        "trainer.n_gpus_per_node",
        "data.train_files",
        "data.custom_cls.path",
        "data.train_batch_size",
        "actor_rollout_ref.model.path",
        "actor_rollout_ref.model.external_lib",
        "actor_rollout_ref.model.trust_remote_code",
        "actor_rollout_ref.model.override_config.attn_implementation",
        "actor_rollout_ref.actor.optim.optimizer_impl",
        "actor_rollout_ref.actor.optim.override_optimizer_config.fused",
        "actor_rollout_ref.actor.checkpoint.save_contents",
        "actor_rollout_ref.actor.fsdp_config._target_",
        "actor_rollout_ref.rollout.engine_kwargs.vllm.x",
        "actor_rollout_ref.rollout.name",
        "actor_rollout_ref.rollout.custom.x",
        "actor_rollout_ref.rollout.agent.custom_async_server.path",
        "actor_rollout_ref.rollout.prometheus.file",
        "reward.custom_reward_function.path",
        "reward.sandbox_fusion.url",
        "transfer_queue.enable",
        "global_profiler.save_path",
        # Of another algorithm.
        "critic.shuffle",
    ],
)
def test_what_loads_code_or_belongs_to_the_platform_is_refused(name: str) -> None:
    assert check("grpo", {"verl_overrides": {name: 1}})[f"verl_overrides.{name}"].startswith(MAY_NOT)


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("actor_rollout_ref.actor.tau_pos", "1.0", "a number"),
        ("actor_rollout_ref.actor.tau_pos", True, "a number"),
        ("actor_rollout_ref.actor.tau_pos", float("inf"), "a number"),
        ("actor_rollout_ref.actor.tau_pos", "${oc.env:HOME}", "a number"),
        ("actor_rollout_ref.rollout.max_num_seqs", 1.5, "a whole number"),
        ("actor_rollout_ref.actor.shuffle", 1, "true or false"),
        ("algorithm.rollout_correction.rollout_is", "${oc.env:HOME}", "one of [None, 'token', 'sequence']"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", ["vanilla"], "one of "),
    ],
)
def test_a_value_has_verls_type(name: str, value: Any, wanted: str) -> None:
    found = check("grpo", {"verl_overrides": {name: value}})
    assert list(found) == [f"verl_overrides.{name}"]
    assert found[f"verl_overrides.{name}"].startswith(f"must be {wanted}")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("actor_rollout_ref.actor.tau_poss", "actor_rollout_ref.actor.tau_pos"),
        ("gpu_memory_utilisation", "actor_rollout_ref.rollout.gpu_memory_utilization"),
        ("optim.lr_warmup_steps", "actor_rollout_ref.actor.optim.lr_warmup_steps"),
    ],
)
def test_a_near_miss_is_suggested(name: str, meant: str) -> None:
    assert check("grpo", {"verl_overrides": {name: 1}})[f"verl_overrides.{name}"] == f"{MAY_NOT}; did you mean {meant}?"


def test_all_wrong_settings_are_told_at_once() -> None:
    wrong = {"trainer.logger": 1, "actor_rollout_ref": {"actor": {"tau_pos": "x"}, "model": {"path": "/etc"}}}
    assert sorted(check("grpo", {"verl_overrides": wrong})) == [
        "verl_overrides.actor_rollout_ref.actor.tau_pos",
        "verl_overrides.actor_rollout_ref.model.path",
        "verl_overrides.trainer.logger",
    ]


@pytest.mark.parametrize("algorithm", algorithms.names())
def test_the_schema_lists_what_is_taken_with_the_default_of_a_job_that_sets_nothing(algorithm: str) -> None:
    options = schema.schema(algorithm)["properties"]["verl_overrides"]["anyOf"]
    listed = options[0]["properties"]
    assert set(listed) == set(open_settings(algorithms.get(algorithm).Params))
    planned = plan(algorithm, {}).verl
    for name, entry in listed.items():
        if "default" not in entry:
            assert planned[name] is False and entry["description"].startswith("false on a CPU"), name
            continue
        assert planned.get(name, entry["default"]) == entry["default"], name
        # Where each of them has an effect.
        found = check(algorithm, {"verl_overrides": {name: entry["default"]}}, device="cuda")
        assert not any(field.startswith("verl_overrides") for field in found), name
    assert ("critic.ppo_epochs" in listed) == (algorithm == "ppo")
    assert (LOSS in listed and listed[LOSS]["default"] == "gspo") == (algorithm == "gspo")
