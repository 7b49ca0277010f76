"""Sockets of a server: the same port for all addresses, clear errors, and no delays."""

from __future__ import annotations

import socket

import pytest

from memfit.errors import UsageError
from memfit.server.listening import open_sockets
from memfit.server.settings import Settings


def test_all_addresses_have_the_same_port() -> None:
    sockets = open_sockets(Settings(hosts=("127.0.0.1", "127.0.0.2"), port=0))
    try:
        assert [one.getsockname()[0] for one in sockets] == ["127.0.0.1", "127.0.0.2"]
        assert len({one.getsockname()[1] for one in sockets}) == 1
        # What asyncio looks at before it sends what is written at once.
        assert all(one.proto == socket.IPPROTO_TCP for one in sockets)
    finally:
        for one in sockets:
            one.close()


@pytest.mark.parametrize(
    "hosts", [("127.0.0.1",), ("127.0.0.2", "127.0.0.1"), ("127.0.0.3", "127.0.0.3")], ids=len
)
def test_a_port_that_is_taken_is_named_and_nothing_stays_open(hosts: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port}: .*; try another --port") as raised:
            open_sockets(Settings(hosts=hosts, port=port))
        assert hosts[-1] in str(raised.value) and raised.value.field == "--port"
        if hosts[0] != "127.0.0.1":
            socket.create_server((hosts[0], port)).close()


def test_a_host_that_is_none_is_named() -> None:
    with pytest.raises(UsageError, match=r"cannot listen on 256\.1\.1\.1 port"):
        open_sockets(Settings(hosts=("256.1.1.1",), port=0, insecure=True))
