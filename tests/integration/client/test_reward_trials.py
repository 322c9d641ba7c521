"""A reward is tried before a job is made: over gRPC, over HTTP and by the command, through a real gateway."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from rlhf.type.v1.chat_turn_pb2 import ChatTurn
from rlhf.type.v1.scoring_pb2 import ScoringSample

from services.client import Client
from services.mesh.errors import InvalidArgument, NotFound
from tests.integration.client.conftest import Mesh
from tests.integration.client.test_docs import environment

SUM = {"components": [{"name": "numeric"}, {"name": "format_tags", "weight": 0.5, "params": {"tags": ["a"]}}]}
RLHF = str(Path(sys.executable).with_name("rlhf"))


def samples() -> list[ScoringSample]:
    prompt = [ChatTurn(role="user", content="6 · 7?")]
    return [
        ScoringSample(prompt=prompt, completion="<a>42</a>", answer="42"),
        ScoringSample(prompt=prompt, completion="42", answer="42"),
        ScoringSample(prompt=prompt, completion="", answer="42"),
    ]


def test_over_grpc(client: Client) -> None:
    found = client.rewards.test("weighted", samples(), SUM)
    assert [verdict.score for verdict in found.verdicts] == [1.5, 1, 0]
    assert found.verdicts[1].parts == {
        "numeric": 1, "numeric/correct": 1, "numeric/parsed": 1,
        "format_tags": 0, "format_tags/once": 0, "format_tags/order": 0,
        "format_tags/clean": 0, "format_tags/filled": 0,
    }  # fmt: skip
    assert not any(verdict.HasField("error") for verdict in found.verdicts)
    assert 0 < found.elapsed_seconds < 60


def test_an_answer_that_is_missing_is_not_an_empty_one(client: Client) -> None:
    found = client.rewards.test("exact", [ScoringSample(completion=""), ScoringSample(completion="", answer="")])
    assert [verdict.score for verdict in found.verdicts] == [0, 1]


def test_everything_that_is_wrong_at_once(client: Client) -> None:
    odd = ScoringSample(prompt=[ChatTurn(role="robot", content="x")], completion="x")
    with pytest.raises(InvalidArgument) as caught:
        client.rewards.test("weighted", [odd], {"components": [{"name": "regex", "params": {"pattern": "("}}]})
    assert {violation.field for violation in caught.value.violations} == {
        "samples.0.prompt.0.role",
        "params.components.0.params.pattern",
    }
    with pytest.raises(InvalidArgument) as caught:
        client.rewards.test("vibes", [])
    assert {violation.field for violation in caught.value.violations} == {"samples", "reward_id"}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([ScoringSample(completion="x")] * 257, "1 to 256"),
        ([ScoringSample(completion="x" * (1 << 20))], "bytes together"),
    ],
)
def test_no_more_than_a_trial_takes(client: Client, given: list[ScoringSample], says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        client.rewards.test("exact", given)


async def post(mesh: Mesh, body: dict[str, Any]) -> httpx.Response:
    headers = {"authorization": f"Bearer {(mesh.home / 'token').read_text().strip()}"}
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        url = f"http://127.0.0.1:{mesh.http_port}/v1/projects/default/rewards:test"
        return await client.post(url, json=body, headers=headers)


async def test_over_http(mesh: Mesh) -> None:
    rows = [{"completion": "so 42", "answer": "42"}, {"completion": "so 41", "answer": "42"}]
    answer = await post(mesh, {"rewardId": "numeric", "samples": rows})
    assert answer.status_code == 200, answer.text
    assert [verdict["score"] for verdict in answer.json()["verdicts"]] == [1, 0]
    refused = await post(mesh, {"rewardId": "numeric", "params": {"which": "middle"}, "samples": rows})
    assert refused.status_code == 400 and "params.which" in refused.text
    other = await post(mesh, {"parent": "x", "rewardId": "exact", "samples": rows})
    assert other.status_code in (200, 400)


async def test_several_at_a_time(mesh: Mesh) -> None:
    body = {"rewardId": "exact", "samples": [{"completion": "a", "answer": "a"}]}
    answers = await asyncio.gather(*(post(mesh, body) for _ in range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6, [answer.text for answer in answers]
    assert [answer.json()["verdicts"][0]["score"] for answer in answers] == [1] * 6


def rlhf(mesh: Mesh, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RLHF, "reward", "test", *words],
        cwd=folder, env=environment(mesh), capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def test_the_command(mesh: Mesh, tmp_path: Path) -> None:
    done = rlhf(mesh, tmp_path, "numeric", "--completion", "so 42.", "--completion", "none", "--answer", "42")
    assert done.returncode == 0, done.stderr
    header, first, second = (line.split() for line in done.stdout.splitlines())
    assert header == ["SAMPLE", "COMPLETION", "SCORE", "correct", "parsed"]
    assert (first[-3:], second[-3:]) == (["1", "1", "1"], ["0", "0", "0"])


def test_the_command_on_rows(mesh: Mesh, tmp_path: Path) -> None:
    rows = [
        {"completion": "42", "answer": "42", "prompt": [{"role": "user", "content": "6 · 7?"}], "metadata": {"a": 1}},
        {"completion": "41", "answer": "42", "prompt": "6 · 7?"},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    done = rlhf(mesh, tmp_path, "exact", "--file", "rows.jsonl", "-o", "json")
    assert done.returncode == 0, done.stderr
    assert [verdict["score"] for verdict in json.loads(done.stdout)["verdicts"]] == [1, 0]
    file.write_text('{"completion": 1}\n{\n{"completion": "a", "awnser": "b"}')
    done = rlhf(mesh, tmp_path, "exact", "--file", "rows.jsonl")
    assert done.returncode == 2
    for said in ("3 things to change", "line 1", "line 2", "line 3", "awnser"):
        assert said in done.stderr


def test_the_command_names_the_flag_that_is_wrong(mesh: Mesh, tmp_path: Path) -> None:
    done = rlhf(mesh, tmp_path, "numeric", "--completion", "x", "--set", "which=middle")
    assert done.returncode == 2 and "--set which" in done.stderr
    done = rlhf(mesh, tmp_path, "numeric")
    assert done.returncode == 2 and "--completion" in done.stderr


def test_a_reward_model_is_named_as_a_model_is(client: Client) -> None:
    """`base` is a language model: the mesh says so of its full name, wherever in the params it stands."""
    full = "projects/default/models/base is a language model"
    with pytest.raises(InvalidArgument, match=full):
        client.rewards.test("model", samples(), {"model": "base"})
    summed = {"components": [{"name": "numeric"}, {"name": "model", "params": {"model": "base"}}]}
    with pytest.raises(InvalidArgument, match=full) as caught:
        client.training_jobs.create(
            "grpo", model="base", dataset="none", params={"reward": {"name": "weighted", "params": summed}}
        )
    fields = [violation.field for violation in caught.value.violations if full in violation.description]
    assert fields == ["training_job.params.reward.params.components.1.params.model"]
    with pytest.raises(NotFound, match="no model and no job 'nobody'"):
        client.rewards.test("model", samples(), {"model": "nobody"})
    with pytest.raises(InvalidArgument) as caught:
        client.rewards.test("weighted", samples(), {"components": [{"name": "model", "params": {"model": "A B"}}]})
    assert [violation.field for violation in caught.value.violations] == ["params.components.0.params.model"]
