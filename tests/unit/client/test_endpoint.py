"""Where the mesh is: what was said wins over the environment, that over the home."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.client.endpoint import Endpoint, Where
from services.mesh.errors import InvalidArgument, Unauthenticated, Unavailable
from services.mesh.settings import Environment


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "endpoints.json").write_text(json.dumps({"grpc": "127.0.0.1:5"}))
    (tmp_path / "token").write_text("of-the-home\n")
    return tmp_path


def test_the_home_of_a_mesh_that_is_up(home: Path) -> None:
    assert Where().find(Environment({"RLHF_HOME": str(home)})) == Endpoint("127.0.0.1:5", "of-the-home")
    assert Where(home=home).find(Environment({})) == Endpoint("127.0.0.1:5", "of-the-home")


def test_the_environment_wins_over_the_home_and_arguments_over_both(home: Path) -> None:
    values = {"RLHF_HOME": str(home), "RLHF_SERVER": "far:1", "RLHF_TOKEN": "of-the-environment"}
    assert Where().find(Environment(values)) == Endpoint("far:1", "of-the-environment")
    (home / "other").write_text("of-a-file")
    assert Where(token_file=home / "other").find(Environment(values)).token == "of-a-file"
    assert Where("near:2", "said").find(Environment(values)) == Endpoint("near:2", "said")
    values = {"RLHF_HOME": str(home), "RLHF_TOKEN_FILE": str(home / "other"), "RLHF_SERVER_CERTIFICATES": "/roots.pem"}
    assert Where().find(Environment(values)) == Endpoint("127.0.0.1:5", "of-a-file", Path("/roots.pem"))


def test_what_is_missing_is_told_with_its_remedy(home: Path) -> None:
    (home / "run" / "endpoints.json").write_text("[]")
    with pytest.raises(Unavailable, match="rlhf up") as caught:
        Where(home=home).find(Environment({}))
    assert caught.value.reason == "MESH_NOT_UP"
    with pytest.raises(Unauthenticated):
        Where("far:1", home=home / "absent").find(Environment({}))
    with pytest.raises(InvalidArgument, match="host:port"):
        Where(home=home).find(Environment({"RLHF_SERVER": "nowhere"}))


def test_a_token_is_not_printed() -> None:
    assert "secret" not in repr(Where("far:1", "secret")) + repr(Endpoint("far:1", "secret"))
