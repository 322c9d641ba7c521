"""What there is to train with, by command."""

from __future__ import annotations

from tests.integration.cli.fake_mesh import FakeMesh


async def test_settings_of_verl_are_listed_with_type_and_default(fake_mesh: FakeMesh) -> None:
    listed = await fake_mesh.rlhf("algorithm", "overrides", "gspo", "-o", "json")
    settings = listed.json
    assert settings["actor_rollout_ref.rollout.max_num_seqs"] == {"type": "integer", "default": 256}
    assert settings["actor_rollout_ref.actor.policy_loss.loss_mode"]["default"] == "gspo"
    assert not any(name.startswith("critic.") for name in settings)
    table = (await fake_mesh.rlhf("algorithm", "overrides", "gspo")).out.splitlines()
    assert table[0].split() == ["SETTING", "OF", "VERL", "DEFAULT", "TYPE", "NOTE"]
    assert len(table) == 1 + len(settings)
    (line,) = (line for line in table if line.startswith("actor_rollout_ref.rollout.gpu_memory_utilization"))
    assert line.split()[1:] == ["0.5", "number"]
    unknown = await fake_mesh.rlhf("algorithm", "overrides", "gpro", check=4)
    assert "there is no algorithm 'gpro'" in unknown.err


async def test_an_algorithm_and_its_help_say_where_they_are_listed(fake_mesh: FakeMesh) -> None:
    shown = await fake_mesh.rlhf("algorithm", "show", "sft")
    assert "rlhf algorithm overrides sft" in shown.err
    assert "engine.forward_prefetch" not in shown.out and "verl_overrides" in shown.out
    assert "rlhf algorithm overrides sft" in (await fake_mesh.rlhf("train", "sft", "--help")).err
