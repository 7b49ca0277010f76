"""The supervisor's judgement: which addresses, which sizes, how many deaths."""

from __future__ import annotations

import signal
import socket

import pytest

from memfit.engines.llamacpp.rpc_supervisor import _CAUSES, Restarts, RpcSupervisor
from memfit.errors import UsageError
from memfit.processes.death import cause_of_death


def test_five_restarts_in_ten_seconds_and_no_more() -> None:
    restarts = Restarts()
    assert [restarts.allow(now) for now in (0.0, 1.0, 2.0, 3.0, 4.0)] == [True] * 5
    assert not restarts.allow(9.9)


def test_deaths_far_apart_are_borne_for_ever() -> None:
    restarts = Restarts()
    assert all(restarts.allow(2.5 * number) for number in range(100))


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (-signal.SIGKILL, "killed"),
        (-signal.SIGABRT, "gave up"),
        (-signal.SIGILL, "doctor"),
        (-signal.SIGSEGV, "SIGSEGV"),
        (3, "code 3"),
    ],
)
def test_a_death_has_a_cause(code: int, word: str) -> None:
    assert word in cause_of_death(code, _CAUSES)


@pytest.mark.parametrize(("host", "local"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_only_loopback_is_local(host: str, local: bool) -> None:
    assert RpcSupervisor(host=host, port=0).is_local is local


@pytest.mark.parametrize("host", ["::1", "192.0.2.1", "", "a" * 300])  # 192.0.2.1 is nobody's, RFC 5737
def test_an_address_that_is_not_here_is_refused(host: str) -> None:
    with pytest.raises(UsageError, match=r"--host|cannot listen"):
        RpcSupervisor(host=host, port=0)


def test_a_port_in_use_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"127.0.0.1:{port}: Address already in use"):
            RpcSupervisor(host="127.0.0.1", port=port)


@pytest.mark.parametrize("memory", ["", "0", "-1", "4GiBB", "101%", "nan"])
def test_nonsense_sizes_are_refused(memory: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        RpcSupervisor(host="127.0.0.1", port=0, memory=memory)
