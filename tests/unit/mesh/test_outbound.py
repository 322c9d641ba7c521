"""What may be called beyond the mesh: by the address that a name resolves to, and by nothing else."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.mesh import identity
from services.mesh.errors import NotFound
from services.mesh.outbound import Allowance, Endpoint, OutboundRefused, client
from services.mesh.settings import Environment


def resolves_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def answer(host: str, port: int, **_: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.parametrize(
    ("entries", "url", "address", "allowed"),
    [
        ([], "http://127.0.0.1/", "127.0.0.1", False),
        (["loopback"], "http://127.0.0.1:9/", "127.0.0.1", True),
        (["loopback"], "http://localhost:9/", "127.0.0.1", True),
        (["loopback"], "http://[::1]/", "::1", True),
        (["loopback"], "http://[::ffff:127.0.0.1]/", "::ffff:127.0.0.1", True),
        (["loopback"], "http://169.254.169.254/", "169.254.169.254", False),
        (["loopback:8080"], "http://127.0.0.1:8080/", "127.0.0.1", True),
        (["loopback:8080"], "http://127.0.0.1:5432/", "127.0.0.1", False),
        (["10.0.0.0/8"], "http://judge.local/", "10.1.2.3", True),
        (["10.0.0.0/8"], "http://judge.local/", "192.168.0.1", False),
        (["10.1.2.3:443"], "https://judge.local/", "10.1.2.3", True),
        (["api.example.com"], "https://api.example.com/", "93.184.216.34", True),
        (["api.example.com"], "https://API.example.com/", "93.184.216.34", True),
        (["api.example.com"], "https://evil.example.com/", "93.184.216.34", False),
        (["api.example.com"], "https://api.example.com.evil.com/", "93.184.216.34", False),
        (["api.example.com:443"], "https://api.example.com:8443/", "93.184.216.34", False),
        # Whoever holds the name's DNS points it at the machine itself, a neighbour, or the cloud's metadata.
        (["api.example.com"], "https://api.example.com/", "127.0.0.1", False),
        (["api.example.com"], "https://api.example.com/", "10.0.0.1", False),
        (["api.example.com"], "https://api.example.com/", "169.254.169.254", False),
        (["api.example.com"], "https://api.example.com/", "::ffff:10.0.0.1", False),
        (["api.example.com", "10.0.0.0/8"], "https://api.example.com/", "10.0.0.1", True),
        # IPv6 that leads to IPv4 leads where that does: 10.0.0.1, 169.254.169.254 and 127.0.0.1, in every spelling.
        *(
            (["api.example.com"], "https://api.example.com/", address, False)
            for address in (
                *("64:ff9b::10.0.0.1", "64:ff9b::169.254.169.254", "64:ff9b::127.0.0.1", "64:ff9b:1::10.0.0.1"),
                *("2002:a00:1::1", "2002:a9fe:a9fe::", "2002:7f00:1::1", "2002:c0a8:1::5"),
                *("2001:0:a00:1::f5ff:fffe", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
                *("::ffff:0:10.0.0.1", "::10.0.0.1", "2a00::5efe:10.0.0.1", "2a00::200:5efe:a9fe:a9fe"),
                *("fe80::1", "fc00::1", "::", "ff0e::1", "224.0.0.1"),
            )
        ),
        (["api.example.com"], "https://api.example.com/", "64:ff9b::93.184.216.34", True),
        (["api.example.com"], "https://api.example.com/", "2002:5db8:d822::1", True),
        (["api.example.com"], "https://api.example.com/", "2606:2800:220:1::1", True),
        # Whoever lists the translator's network means it; the IPv4 network that it leads to is another thing.
        (["64:ff9b::/96"], "https://api.example.com/", "64:ff9b::10.0.0.1", True),
        (["10.0.0.0/8"], "https://api.example.com/", "64:ff9b::10.0.0.1", False),
    ],
)
def test_an_address_is_allowed_or_not(
    entries: list[str], url: str, address: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolves_to(monkeypatch, address)
    allowance, endpoint = Allowance(entries), Endpoint.of(url)
    if allowed:
        assert allowance.may_allow(endpoint)
        expected = ipaddress.ip_address(address.removeprefix("::ffff:"))
        assert allowance.resolve(endpoint) == expected
    else:
        with pytest.raises(OutboundRefused, match="RLHF_OUTBOUND_ALLOW") as refused:
            allowance.resolve(endpoint)
        assert address == endpoint.host or address not in str(refused.value), "a name's address is not for the caller"


def test_of_several_addresses_an_allowed_one_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    resolves_to(monkeypatch, "10.0.0.1", "93.184.216.34")
    assert str(Allowance(["a.example"]).resolve(Endpoint.of("http://a.example/"))) == "93.184.216.34"


@pytest.mark.parametrize(
    "url",
    ["ftp://a/", "file:///etc/passwd", "a.example", "http://", "http://user:pass@a/", "http://a/#x", "http://a\\@b/"],
)
def test_what_is_no_plain_address(url: str) -> None:
    with pytest.raises(ValueError, match="must"):
        Endpoint.of(url)


@pytest.mark.parametrize("entry", ["*", "http://a", "10.0.0.0/99", "a b", "", "-a", "1.2.3"])
def test_entries_that_are_none(entry: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        Allowance([entry])


def test_settings() -> None:
    assert Environment({"A": "loopback, 10.0.0.0/8,Api.Example"}).hosts("A", "loopback") == (
        "loopback", "10.0.0.0/8", "api.example",
    )  # fmt: skip
    assert Environment({}).hosts("A", "loopback") == ("loopback",)
    assert Environment({"A": "none"}).hosts("A", "loopback") == ()
    wrong = Environment({"A": "*", "B": "perhaps"})
    wrong.hosts("A", "loopback")
    wrong.one_of("B", "no", ("no", "yes"))
    with pytest.raises(Exception, match=r"A: .*neither.*B: must be one of no, yes"):
        wrong.done()


class Redirects(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        Redirects.asked.append(f"{self.headers['Host']}{self.path}")
        self.send_response(302)
        self.send_header("Location", "http://169.254.169.254/")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def redirecting() -> Iterator[int]:
    Redirects.asked = []
    server = HTTPServer(("127.0.0.1", 0), Redirects)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_address_that_was_checked_is_called_and_no_other(redirecting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name resolves to what is allowed once and to another thing afterwards; it is resolved once."""
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    original = socket.getaddrinfo
    answers = iter(["127.0.0.1"])

    def rebinding(host: Any, *arguments: Any, **options: Any) -> Any:
        return original(next(answers) if host == "judge.example" else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with client(Allowance(["loopback"]), 5) as http:
        answer = http.get(f"http://judge.example:{redirecting}/x")
    assert answer.status_code == 302, "a redirect is not followed"
    assert Redirects.asked == [f"judge.example:{redirecting}/x"]
    with client(Allowance(["loopback:1"]), 5) as http, pytest.raises(OutboundRefused):
        http.get(f"http://127.0.0.1:{redirecting}/x")
    assert len(Redirects.asked) == 1


def test_a_name_without_an_address_is_a_broken_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with client(Allowance(["loopback"]), 5) as http, pytest.raises(httpx.ConnectError):
        http.get("http://judge.example/")


def test_a_secret_is_read_by_its_name_alone(tmp_path: Path) -> None:
    (tmp_path / "judge-key").write_text("sk-1\n")
    (tmp_path / "empty").touch()
    (tmp_path / "two-lines").write_text("sk-very\nsecret\n")
    (tmp_path / "no-ascii").write_text("sk-véry")
    assert identity.read_secret(tmp_path, "secret:judge-key") == "sk-1"
    for reference in ("secret:none", "secret:empty", "secret:two-lines", "secret:no-ascii"):
        with pytest.raises(NotFound) as missing:
            identity.read_secret(tmp_path, reference)
        assert "sk-" not in str(missing.value)
    for reference in ("sk-very-secret", "secret:../judge-key", "secret:", "secret:.", "secret:a/b", "secret:A"):
        with pytest.raises(ValueError, match="secret:<name>") as caught:
            identity.read_secret(tmp_path, reference)
        assert "sk-very" not in str(caught.value)
