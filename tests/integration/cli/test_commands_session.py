"""Finding the mesh, exit codes, and what goes to stdout and to stderr."""

from __future__ import annotations

import asyncio

import pytest

from tests.fix_member import until
from tests.fix_rogue import rogue, socket_folder, tell
from tests.integration.cli.fake_mesh import FakeMesh


async def test_no_mesh_in_this_home(fake_mesh: FakeMesh) -> None:
    (fake_mesh.home / "run" / "endpoints.json").unlink()
    done = await fake_mesh.rlhf("model", "list", check=3)
    assert done.out == ""
    assert done.err == f"error: the mesh is not up (home {fake_mesh.home}): run `rlhf up`\n"


async def test_a_mesh_that_does_not_answer(fake_mesh: FakeMesh) -> None:
    address = tell(fake_mesh.home, fake_mesh.home / "gateway.sock")
    fake_mesh.home.chmod(0o700)
    done = await fake_mesh.rlhf("dataset", "list", check=3)
    assert f"nothing answers at {address}" in done.err
    assert "rlhf up" in done.err


@pytest.mark.parametrize("is_killed", [True, False])
async def test_whoever_sits_where_a_mesh_was_gets_no_token(fake_mesh: FakeMesh, is_killed: bool) -> None:
    """Its supervisor was killed, and left its addresses; or its folder in /tmp was cleared away and made by others."""
    ended = await asyncio.create_subprocess_exec("true")
    await ended.wait()
    with socket_folder() as folder:
        address = tell(fake_mesh.home, folder / "gateway.sock", pid=ended.pid if is_killed else None)
        folder.chmod(0o777)
        with rogue(folder, address) as heard:
            await until(lambda: f"TAKEN {address}" in heard.read_text())
            done = await fake_mesh.rlhf("dataset", "list", check=3)
            assert "CALL" not in heard.read_text()
    assert ("is not running any more" in done.err) is is_killed
    assert ("others may write to it" in done.err) is not is_killed
    assert "`rlhf up`" in done.err


async def test_a_server_by_address_and_token_file(fake_mesh: FakeMesh) -> None:
    elsewhere = fake_mesh.home / "elsewhere"
    elsewhere.mkdir()
    address, token = f"127.0.0.1:{fake_mesh.port}", str(fake_mesh.home / "token")
    environment = {"RLHF_HOME": str(elsewhere), "RLHF_SERVER": address, "RLHF_TOKEN_FILE": token}
    assert (await fake_mesh.rlhf("model", "list", "-o", "json", environment=environment)).json == []
    options = ("--server", address, "--token-file", token)
    assert (
        await fake_mesh.rlhf(*options, "model", "list", "-o", "json", environment={"RLHF_HOME": str(elsewhere)})
    ).json == []


async def test_a_wrong_token_is_refused(fake_mesh: FakeMesh) -> None:
    (fake_mesh.home / "token").write_text("wrong\n")
    assert "the token is not the one of this mesh" in (await fake_mesh.rlhf("job", "list", check=5)).err


async def test_projects_are_apart(fake_mesh: FakeMesh) -> None:
    (fake_mesh.home / "config.json").write_text("{}")
    config = str(fake_mesh.home / "config.json")
    await fake_mesh.rlhf("--project", "other", "model", "import", "m", "--init", config, "--characters", "01")
    assert list(fake_mesh.trainer.models) == ["projects/other/models/m"]
    assert "not a name" in (await fake_mesh.rlhf("--project", "No!", "model", "list", check=2)).err


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("job", "show", "absent"), 4),
        (("model", "show", "absent"), 4),
        (("dataset", "rows", "absent"), 4),
        (("checkpoint", "list", "absent"), 4),
        (("algorithm", "show", "absent"), 4),
        (("job", "show", "Not A Name"), 2),
        (("job", "list", "--state", "asleep"), 2),
        (("model", "import", "m"), 2),
        (("nonsense",), 2),
        (("job", "list", "--limit", "-1"), 2),
    ],
)
async def test_exit_codes(fake_mesh: FakeMesh, arguments: tuple[str, ...], code: int) -> None:
    done = await fake_mesh.rlhf(*arguments, check=code)
    assert done.out == ""
    assert done.err
    assert "Traceback" not in done.err


async def test_lists_without_items_say_so_on_stderr_and_give_scripts_nothing(fake_mesh: FakeMesh) -> None:
    for noun in ("model", "dataset", "job"):
        table = await fake_mesh.rlhf(noun, "list")
        assert table.out == ""
        assert f"no {noun}s" in table.err
        assert (await fake_mesh.rlhf(noun, "list", "-o", "json")).json == []
        assert (await fake_mesh.rlhf(noun, "list", "-o", "name")).out == ""


async def test_help_of_an_algorithm_comes_from_the_mesh(fake_mesh: FakeMesh) -> None:
    groups, page = await asyncio.gather(fake_mesh.rlhf("train", "--help"), fake_mesh.rlhf("train", "grpo", "--help"))
    assert "grpo" in groups.out
    assert "sft" in groups.out
    assert "arXiv:2402.03300" in page.out
    rate = next(line for line in page.out.splitlines() if line.startswith("learning_rate"))
    assert rate.split()[1:5] == ["1e-06", "number,", ">", "0,"]
    await fake_mesh.stop()
    down = await fake_mesh.rlhf("train", "grpo", "--help")
    assert "--set" in down.out
    assert "parameters come from the mesh" in down.err


async def test_completion_offers_the_names_of_the_mesh(fake_mesh: FakeMesh) -> None:
    (fake_mesh.home / "config.json").write_text("{}")
    config = str(fake_mesh.home / "config.json")
    for name in ("tiny-one", "other"):
        await fake_mesh.rlhf("model", "import", name, "--init", config, "--characters", "01")
    asked = {"_RLHF_COMPLETE": "complete_bash", "COMP_WORDS": "rlhf model show ti", "COMP_CWORD": "3"}
    assert (await fake_mesh.rlhf(environment=asked)).out.split() == ["tiny-one"]
    await fake_mesh.stop()
    assert (await fake_mesh.rlhf(environment=asked)).out.split() == []


async def test_registries_are_shown(fake_mesh: FakeMesh) -> None:
    rewards = await fake_mesh.rlhf("reward", "list")
    shown_names = [line.split()[0] for line in rewards.out.splitlines()]
    assert shown_names[0] == "REWARD" and {"exact", "math", "numeric", "regex", "weighted"} < set(shown_names)
    shown = await fake_mesh.rlhf("reward", "show", "regex")
    assert any(line.split()[:2] == ["pattern", "required"] for line in shown.out.splitlines())
    as_json = (await fake_mesh.rlhf("algorithm", "show", "sft", "-o", "json")).json
    assert as_json["datasetFormats"] == ["messages"]
