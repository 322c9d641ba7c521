"""A judge over HTTP that behaves as a test tells it to."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@dataclass
class Answer:
    """`body` is sent as JSON, or as it is where it is bytes; `seconds` before it comes, `drip` between its bytes."""

    body: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    drip: float = 0.0


@dataclass
class FakeJudge:
    """`answer(body)` makes each answer; before that come those of `first`, one a request."""

    port: int = 0
    answer: Callable[[Any], Answer] = lambda body: Answer(status=500)
    first: list[Answer] = field(default_factory=list)
    asked: list[Any] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/chat/completions"


def chat(content: Any, tokens: tuple[int, int] | None = (100, 10)) -> Answer:
    """A chat completion that says `content`."""
    text = content if isinstance(content, str) else json.dumps(content)
    body: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}]}
    if tokens:
        body["usage"] = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return Answer(body)


def start(judge: FakeJudge, port: int = 0) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with judge.lock:
                judge.asked.append(body)
                judge.keys.append(self.headers["Authorization"])
                judge.at_once += 1
                judge.most_at_once = max(judge.at_once, judge.most_at_once)
                answer = judge.first.pop(0) if judge.first else judge.answer(body)
            time.sleep(answer.seconds)
            # Before whoever asked has the answer, and asks again.
            with judge.lock:
                judge.at_once -= 1
            with contextlib.suppress(OSError):  # whoever asked has gone
                self._send(answer)

        def _send(self, answer: Answer) -> None:
            data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            for at in range(0, len(data), 1 if answer.drip else len(data) or 1):
                self.wfile.write(data[at : at + 1] if answer.drip else data)
                time.sleep(answer.drip)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    judge.port = server.server_port
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    return server


@pytest.fixture
def fake_judge() -> Iterator[FakeJudge]:
    judge = FakeJudge()
    server = start(judge)
    yield judge
    server.shutdown()
    server.server_close()
