"""Every algorithm's plan as the installed verl's configuration, down to the dataclasses that its workers are given."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("verl")

from omegaconf import DictConfig, OmegaConf

from services.trainer.algorithms import algorithms
from services.trainer.algorithms.overrides import SETTINGS_FILE
from services.trainer.training.launch_plan import LaunchPlan
from services.trainer.training.tasks import RlTask
from tests.unit.trainer.test_algorithms import plan

pytestmark = pytest.mark.usefixtures("verl_on_cpu")
# Sections that verl makes dataclasses of, which refuse unknown fields and check the others.
RL = ("actor_rollout_ref.actor", "actor_rollout_ref.ref", "actor_rollout_ref.rollout", "algorithm")
SFT = ("engine", "optim", "checkpoint")
# What verl's worker calls these of the reference's section before it makes a dataclass of it.
REFERENCE = {
    "log_prob_micro_batch_size": "ppo_micro_batch_size",
    "log_prob_micro_batch_size_per_gpu": "ppo_micro_batch_size_per_gpu",
    "log_prob_use_dynamic_bsz": "use_dynamic_bsz",
    "log_prob_max_token_len_per_gpu": "ppo_max_token_len_per_gpu",
}


def composed(made: LaunchPlan) -> DictConfig:
    from services.trainer.verl.configuration import rl_config, sft_config

    config = rl_config(made) if isinstance(made.task, RlTask) else sft_config(made)
    OmegaConf.resolve(config)
    return config


def sections(config: DictConfig, made: LaunchPlan) -> dict[str, Any]:
    from verl.utils.config import omega_conf_to_dataclass

    names = RL if isinstance(made.task, RlTask) else SFT
    found = {}
    for name in (*names, "critic") if made.algorithm == "ppo" else names:
        section = OmegaConf.select(config, name).copy()
        OmegaConf.set_struct(section, False)
        if name.endswith(".ref"):
            for own, others in REFERENCE.items():
                section[others] = section.pop(own)
        elif name == "critic":
            # Its model is read from the folder.
            section.pop("model")
        found[name] = omega_conf_to_dataclass(section)
    return found


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("name", algorithms.names())
def test_a_plan_is_a_configuration_of_the_installed_verl(name: str, device: str) -> None:
    """A field that verl has renamed or dropped is refused here, before a run would be."""
    for params in ({}, {"lora": {"rank": 4}}):
        made = plan(name, params, device=device)
        config = composed(made)
        assert sections(config, made)
        # Each is where verl reads it: a name that verl doesn't know would stand alone beside its own.
        for key, value in made.verl.items():
            found = OmegaConf.select(config, key)
            found = OmegaConf.to_container(found) if OmegaConf.is_config(found) else found
            if "attn_implementation" not in key and "use_remove_padding" not in key:
                assert found == value or value.items() <= found.items(), key


def test_values_arrive_in_verls_dataclasses() -> None:
    made = plan("ppo", {"critic": {"learning_rate": 2e-4, "micro_batch_size": 4}, "gae_lambda": 0.9})
    found = sections(composed(made), made)
    assert found["algorithm"].lam == 0.9 and found["critic"].optim.lr == 2e-4
    engine = found["critic"].engine
    assert (engine.strategy, engine.micro_batch_size_per_gpu, engine.use_dynamic_bsz) == ("fsdp2", 4, False)
    made = plan("dr_grpo", {"max_response_length": 100})
    actor = sections(composed(made), made)["actor_rollout_ref.actor"]
    assert (actor.loss_agg_mode, actor.loss_scale_factor) == ("seq-mean-token-sum-norm", 100)
    made = plan("gspo", {})
    assert sections(composed(made), made)["actor_rollout_ref.actor"].policy_loss.loss_mode == "gspo"
    made = plan("dapo", {"max_generation_batches": 3})
    assert sections(composed(made), made)["algorithm"].filter_groups.max_num_gen_batches == 3


def test_a_jobs_own_settings_reach_verl() -> None:
    overrides = {"actor_rollout_ref": {"actor.tau_pos": 1.5}, "algorithm.rollout_correction.rollout_is": "token"}
    made = plan("grpo", {"verl_overrides": overrides})
    found = sections(composed(made), made)
    assert found["actor_rollout_ref.actor"].tau_pos == 1.5
    assert found["algorithm"].rollout_correction["rollout_is"] == "token"
    made = plan("sft", {"verl_overrides": {"optim.lr_warmup_steps": 7}})
    assert sections(composed(made), made)["optim"].lr_warmup_steps == 7


def test_the_open_settings_are_listed_as_the_installed_verl_has_them() -> None:
    """Otherwise: `python -m services.trainer.verl.dump_settings`."""
    from services.trainer.verl.dump_settings import render

    assert SETTINGS_FILE.read_text("utf-8") == render()


def test_no_open_setting_is_text_but_a_choice() -> None:
    from services.trainer.verl.dump_settings import listing

    entries = [entry for known in listing()["settings"].values() for entry in known.values()]
    assert len(entries) > 50
    assert all("choices" in entry or entry["type"] in ("boolean", "integer", "number") for entry in entries)
