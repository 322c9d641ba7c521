"""A server on a Unix socket: who may take it, what a killed one leaves, and TLS beside it."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.mesh import identity
from services.mesh.errors import FailedPrecondition
from services.mesh.rpc import client
from tests.fix_member import call_shape, shapes_server, until
from tests.fix_rogue import ROGUE_UID, rogue, socket_folder


async def act(value: str) -> str:
    return value


@pytest.fixture
def folder() -> Iterator[Path]:
    with socket_folder() as made:
        yield made


async def test_the_token_opens_a_socket_and_there_is_no_port(home: Path, folder: Path) -> None:
    address = f"unix:{folder}/x.sock"
    async with shapes_server(home, act, listen=address) as server:
        assert server.port == 0
        async with client.connect(address, identity.read_token(home / "token")) as channel:
            assert await call_shape(channel, "unary_unary", "x") == ["x"]
        async with client.connect(address, "wrong") as channel:
            with pytest.raises(Exception, match="not the one of this mesh"):
                await call_shape(channel, "unary_unary", "x")


async def test_what_a_killed_server_left_is_no_hindrance_and_a_living_one_is(home: Path, folder: Path) -> None:
    address = f"unix:{folder}/x.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{folder}/x.sock")
    async with shapes_server(home, act, listen=address):
        with pytest.raises(FailedPrecondition, match=r"listens on .* already"):
            async with shapes_server(home, act, listen=address):
                pass
        async with client.connect(address, identity.read_token(home / "token")) as channel:
            assert await call_shape(channel, "unary_unary", "x") == ["x"]


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o720])
async def test_no_socket_where_others_may_write(home: Path, folder: Path, mode: int) -> None:
    os.chmod(folder, mode)  # noqa: PTH101 - that of pathlib counts as blocking
    with pytest.raises(FailedPrecondition, match="no place for a socket"):
        async with shapes_server(home, act, listen=f"unix:{folder}/x.sock"):
            pass
    with pytest.raises(FailedPrecondition, match="no place for a socket"):
        client.connect(f"unix:{folder}/x.sock", "the token")
    with pytest.raises(FailedPrecondition, match="no socket in"):
        client.connect(f"unix:{folder}/absent/x.sock", "the token")


@pytest.mark.skipif(os.geteuid() != 0, reason="makes folders of other users")
async def test_no_socket_in_another_users_folder(home: Path, folder: Path) -> None:
    os.chown(folder, ROGUE_UID, ROGUE_UID)
    with pytest.raises(FailedPrecondition, match="belongs to somebody else"):
        async with shapes_server(home, act, listen=f"unix:{folder}/x.sock"):
            pass
    with pytest.raises(FailedPrecondition, match="belongs to somebody else"):
        client.connect(f"unix:{folder}/x.sock", "the token")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
async def test_another_user_does_not_take_the_place_of_a_server_that_died(home: Path, folder: Path) -> None:
    address, token = f"unix:{folder}/x.sock", identity.read_token(home / "token")
    async with shapes_server(home, act, listen=address):
        pass
    with rogue(home, address) as heard:
        await until(lambda: bool(heard.read_text()))
        async with client.connect(address, token) as channel:
            with contextlib.suppress(Exception):
                await call_shape(channel, "unary_unary", "x", timeout=3)
        assert heard.read_text() == "HERE\n"


async def test_tls_is_for_ports(home: Path, folder: Path, tmp_path: Path) -> None:
    listen = f"unix:{folder}/x.sock"
    # That cannot be read: a socket asks for none.
    certificate = tmp_path / "absent.pem"
    async with (
        shapes_server(home, act, listen=listen, tls_certificate_file=certificate, tls_key_file=certificate),
        client.connect(listen, identity.read_token(home / "token"), certificate) as channel,
    ):
        assert await call_shape(channel, "unary_unary", "x") == ["x"]
