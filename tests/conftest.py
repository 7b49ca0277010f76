"""What all rooms of tests share. Being here, it also lets them import `hub_server` and `thorough`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from hub_server import HubServer
from printing import write_printing_libraries
from thorough import times

_OURS = ("MEMFIT_SOAK", "MEMFIT_THOROUGH")  # variables of the tests themselves

# No test is timed: on a busy machine any example may take long.
settings.register_profile(
    "memfit",
    max_examples=times(100, 500),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("memfit")


def pytest_configure(config: pytest.Config) -> None:
    # What is measured of this machine is kept for all tests, and apart from what the user's own runs or other
    # checkouts measure: a file holds the figures of one environment, and each would replace the others'.
    os.environ["XDG_CACHE_HOME"] = str(config.rootpath / ".pytest_cache" / "caches")
    # What a user has set for memfit is not for the tests of its defaults.
    for name in [one for one in os.environ if one.startswith("MEMFIT_") and not one.startswith(_OURS)]:
        del os.environ[name]
    _keep_to_own_cpus()


def _keep_to_own_cpus() -> None:
    """Side by side, each worker and the programs it starts keep to CPUs of their own: threads of two
    engines on one CPU wait for each other at every barrier, a hundred times slower than alone."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        number, workers = int(worker.removeprefix("gw")), int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        mine = sorted(os.sched_getaffinity(0))[number::workers]
        if mine:
            os.sched_setaffinity(0, mine)


@pytest.hookimpl(tryfirst=True)  # before xdist looks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file of the engine's tests stays with one worker, which loads its models once. Where there is a GPU
    they all do, for they measure its free memory."""
    gpu = shutil.which("nvidia-smi") is not None
    for item in items:
        if any(item.iter_markers("engine")) or any(item.iter_markers("gpu")):
            item.add_marker(pytest.mark.xdist_group("gpu" if gpu else item.path.stem))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    """A hub on loopback; this process and those it starts use it, with empty caches."""
    with HubServer() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        # The hub speaks plain HTTP, and a client that reads this system's certificates takes 50 ms to make.
        monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            monkeypatch.delenv(name, raising=False)
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        yield server


@pytest.fixture
def printing_libraries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Processes that a test starts find libraries that print to stdout."""
    folder = tmp_path / "printing"
    folder.mkdir()
    for name, value in write_printing_libraries(folder).items():
        monkeypatch.setenv(name, os.pathsep.join(filter(None, (value, os.environ.get(name)))))
