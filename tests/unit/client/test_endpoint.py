"""Where the mesh is: what was said wins over the environment, that over the home."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from services.client.endpoint import Endpoint, Where
from services.mesh.errors import FailedPrecondition, InvalidArgument, Unauthenticated, Unavailable
from services.mesh.settings import Environment
from tests.fix_rogue import tell


@pytest.fixture
def home(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    tell(tmp_path, tmp_path / "s")
    (tmp_path / "token").write_text("of-the-home\n")
    return tmp_path


def test_the_home_of_a_mesh_that_is_up(home: Path) -> None:
    assert Where().find(Environment({"RLHF_HOME": str(home)})) == Endpoint(f"unix:{home}/s", "of-the-home")
    assert Where(home=home).find(Environment({})) == Endpoint(f"unix:{home}/s", "of-the-home")


def test_the_environment_wins_over_the_home_and_arguments_over_both(home: Path) -> None:
    values = {"RLHF_HOME": str(home), "RLHF_SERVER": "far:1", "RLHF_TOKEN": "of-the-environment"}
    assert Where().find(Environment(values)) == Endpoint("far:1", "of-the-environment")
    (home / "other").write_text("of-a-file")
    assert Where(token_file=home / "other").find(Environment(values)).token == "of-a-file"
    assert Where("near:2", "said").find(Environment(values)) == Endpoint("near:2", "said")
    values = {"RLHF_HOME": str(home), "RLHF_TOKEN_FILE": str(home / "other"), "RLHF_SERVER_CERTIFICATES": "/roots.pem"}
    assert Where().find(Environment(values)) == Endpoint(f"unix:{home}/s", "of-a-file"), "a socket speaks no TLS"
    values["RLHF_SERVER"] = "far:1"
    assert Where().find(Environment(values)) == Endpoint("far:1", "of-a-file", Path("/roots.pem"))
    assert Where(f"unix:{home}/t").find(Environment({"RLHF_HOME": str(home)})).address == f"unix:{home}/t"


def test_what_is_missing_is_told_with_its_remedy(home: Path) -> None:
    (home / "run" / "endpoints.json").write_text("[]")
    with pytest.raises(Unavailable, match="rlhf up") as caught:
        Where(home=home).find(Environment({}))
    assert caught.value.reason == "MESH_NOT_UP"
    with pytest.raises(Unauthenticated):
        Where("far:1", home=home / "absent").find(Environment({}))
    with pytest.raises(InvalidArgument, match="host:port"):
        Where(home=home).find(Environment({"RLHF_SERVER": "nowhere"}))


def test_a_socket_that_others_could_make_is_not_called(home: Path) -> None:
    home.chmod(0o777)
    with pytest.raises(Unavailable, match="others may write to it"):
        Where(home=home).find(Environment({}))
    with pytest.raises(FailedPrecondition, match="others may write to it"):
        Where(f"unix:{home}/s", home=home).find(Environment({}))
    tell(home, home / "absent" / "s")
    with pytest.raises(Unavailable, match=r"no socket in .*rlhf up"):
        Where(home=home).find(Environment({}))


def test_a_mesh_of_a_version_that_had_ports_only_is_to_be_started_again(home: Path) -> None:
    (home / "run" / "endpoints.json").write_text('{"grpc": "127.0.0.1:5", "pid": 1}')
    with pytest.raises(Unavailable, match=r"another version .*`rlhf down` and `rlhf up`"):
        Where(home=home).find(Environment({}))


def test_a_mesh_whose_supervisor_is_gone_is_not_called(home: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    tell(home, home / "s", pid=ended.pid)
    with pytest.raises(Unavailable, match=r"not running any more.*rlhf up") as caught:
        Where(home=home).find(Environment({}))
    assert caught.value.reason == "MESH_NOT_UP"


def test_a_token_is_not_printed() -> None:
    assert "secret" not in repr(Where("far:1", "secret")) + repr(Endpoint("far:1", "secret"))
