"""What watches the engine's graph, several as one."""

from __future__ import annotations

from memfit.engines.llamacpp.options import evaluation_callback


def test_each_is_asked_and_only_those_that_want_it_are_called_again() -> None:
    called = []

    def watcher(name: str, wants: bool) -> bool:
        called.append(name)
        return wants

    failures: list[Exception] = []
    callback = evaluation_callback(
        [lambda node, ask: watcher(f"a{ask}", True), lambda node, ask: watcher(f"b{ask}", False)], failures
    )
    assert callback(1, True, None) and callback(1, False, None)
    assert (called, failures) == (["aTrue", "bTrue", "aFalse"], [])


def test_an_error_is_kept_and_ends_the_pass() -> None:
    def broken(node: int, ask: bool) -> bool:
        if not ask:
            raise ValueError(node)
        return True

    failures: list[Exception] = []
    callback = evaluation_callback([broken], failures)
    assert callback(7, True, None)
    assert not callback(7, False, None)
    assert [repr(one) for one in failures] == ["ValueError(7)"]
