"""A model from a hub: a small server of ours speaks as much of the hub's protocol as the client asks for."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

COMMIT = "a" * 40
SPEC = {
    "config": {
        "model_type": "llama",
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "max_position_embeddings": 32,
    },
    "tokenizer": {"kind": "characters", "alphabet": "01"},
}
# By repository, the status and the code of the hub's answer.
WRONG = {"org/gated": (403, "GatedRepo"), "org/broken": (500, "")}


def weights(*arguments: str, **environment: str) -> tuple[int, dict]:
    """Run the command; its exit code and its answer."""
    done = subprocess.run(
        [sys.executable, "-m", "services.models", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, json.loads(done.stdout)


class Hub(BaseHTTPRequestHandler):
    """One repository, `org/tiny`, with a pickle and a script beside its model."""

    files: Path
    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, body: bool) -> None:
        path = self.path.partition("?")[0]
        self.asked.append(path)
        if (wrong := WRONG.get("/".join(path.split("/")[3:5]))) or path.endswith("/revision/v9"):
            status, code = wrong or (404, "RevisionNotFound")
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif path.startswith("/api/models/org/tiny/revision/"):
            siblings = [{"rfilename": file.name} for file in sorted(self.files.iterdir())]
            self._send(json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode(), body)
        elif path.startswith("/api/models/org/tiny/tree/"):
            entries = [
                {"type": "file", "path": file.name, "size": file.stat().st_size, "oid": "0" * 40}
                for file in sorted(self.files.iterdir())
            ]
            self._send(json.dumps(entries).encode(), body)
        elif path.startswith("/org/tiny/resolve/"):
            self._send((self.files / path.rpartition("/")[2]).read_bytes(), body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ThreadingHTTPServer]:
    folder = tmp_path_factory.mktemp("hub")
    spec = folder / "spec.json"
    spec.write_text(json.dumps(SPEC))
    status, facts = weights("init", str(folder / "tiny"), "--spec", str(spec))
    assert status == 0, facts
    (folder / "tiny" / "pytorch_model.bin").write_bytes(b"a pickle")
    (folder / "tiny" / "modeling_tiny.py").write_text("raise SystemExit")
    Hub.files, Hub.asked = folder / "tiny", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def endpoint(hub: ThreadingHTTPServer, home: Path) -> dict[str, str]:
    return {"HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}", "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}


def test_a_model_is_fetched_without_what_could_run_code(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    fetched = weights("fetch", str(folder), "--source", "org/tiny@main", **endpoint(hub, tmp_path / "home"))
    assert fetched == (0, {})
    status, facts = weights("inspect", str(folder))
    assert status == 0, facts
    assert facts["architecture"] == "LlamaForCausalLM"
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not names & {"pytorch_model.bin", "modeling_tiny.py", ".cache"}
    assert not [path for path in Hub.asked if path.endswith((".bin", ".py"))]
    assert (folder / "model.safetensors").read_bytes() == (Hub.files / "model.safetensors").read_bytes()


def test_a_model_that_the_hub_does_not_have_is_named(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    status, answer = weights("fetch", str(folder), "--source", "org/none", **endpoint(hub, tmp_path / "home"))
    assert status == 2
    assert answer["error"].startswith(
        "the hub has no model org/none, or it is private; correct the name, or set HF_TOKEN"
    )
    assert "http" not in answer["error"]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("org/gated", "org/gated is gated: accept its conditions on the hub, and set HF_TOKEN to a token of who did"),
        ("org/tiny@v9", "the hub's org/tiny has no revision v9; name a branch, a tag or a commit of it"),
        ("org/broken", "the hub did not give org/broken; try again later [HTTP 500]"),
    ],
)
def test_so_is_one_that_it_does_not_give(hub: ThreadingHTTPServer, tmp_path: Path, source: str, said: str) -> None:
    asked = weights("fetch", str(tmp_path / "model"), "--source", source, **endpoint(hub, tmp_path / "home"))
    assert asked == (2, {"error": said})


def test_a_hub_that_is_not_there_is_said(tmp_path: Path) -> None:
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:1", "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    status, answer = weights("fetch", str(tmp_path / "model"), "--source", "org/tiny", **nobody)
    assert status == 2
    assert answer["error"].startswith("the hub did not give org/tiny; see that the trainer reaches HF_ENDPOINT")
    assert "http" not in answer["error"] and len(answer["error"]) < 300
