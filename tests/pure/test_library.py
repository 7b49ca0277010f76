"""`memfit pull`, `models` and `remove`, and what the library finds, against a hub on loopback."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from hub_server import HubServer
from memfit.cli import remove as remove_command
from memfit.cli.main import main
from memfit.errors import ModelError, ModelNotFoundError, UsageError
from memfit.hub.cache_layout import cache_paths, hub_cache, urls_folder
from memfit.hub.download import pull
from memfit.hub.library import find_local, local_files, local_models, matching, remove
from memfit.hub.repository import find_remote
from memfit.hub.transfer import Patience
from memfit.units import MIB

_Q4 = random.Random(1).randbytes(100_000)
_Q8 = random.Random(2).randbytes(200_000)
_SHARDS = {f"big/big-Q8_0-0000{number}-of-00003.gguf": bytes([number]) * 50_000 for number in (1, 2, 3)}


@pytest.fixture
def filled(hub: HubServer) -> HubServer:
    """One of each: two variants, a split model, a checkpoint, and a URL; pulled, and named as below."""
    hub.add_repo("org/m", {"m-Q4_K_M.gguf": _Q4, "m-Q8_0.gguf": _Q8, "README.md": b"# m"})
    hub.add_repo("org/big", _SHARDS)
    hub.add_repo("org/st", {"config.json": b"{}", "model.safetensors": _Q4[:5000]})
    for name in ("hf:org/m", "hf:org/m:Q8_0", "hf:org/big", "hf:org/st", hub.add_file("u.gguf", _Q4)):
        pull(find_remote(name))
    return hub


def _names() -> list[str]:
    return [one.name for one in local_models()]


def _run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    said = capsys.readouterr()
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, said.out, said.err


def test_an_empty_disk_has_no_models(hub: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert local_models() == () and find_local("hf:org/m") is None
    assert _run(capsys, "models") == (0, "", "no models yet; memfit pull hf:org/repo downloads one\n")
    assert json.loads(_run(capsys, "models", "--json")[1]) == {"models": []}


def test_every_kind_is_listed_under_a_name_that_works(filled: HubServer) -> None:
    found = {one.name: one for one in local_models()}
    assert {name: (one.kind, one.size_bytes, one.complete) for name, one in found.items()} == {
        "hf:org/big/big/big-Q8_0-00001-of-00003.gguf": ("gguf", 150_000, True),
        "hf:org/m/m-Q4_K_M.gguf": ("gguf", len(_Q4), True),
        "hf:org/m/m-Q8_0.gguf": ("gguf", len(_Q8), True),
        "hf:org/st": ("safetensors", 5002, True),
        f"{filled.url}/files/u.gguf": ("gguf", len(_Q4), True),
    }
    for name, one in found.items():
        assert local_files(find_remote(name)) == one.paths == find_local(name)
        assert one.last_used
    shards = found["hf:org/big/big/big-Q8_0-00001-of-00003.gguf"].paths
    assert [path.read_bytes() for path in shards] == list(_SHARDS.values())
    assert len({path.parent for path in shards}) == 1


def test_models_are_found_by_shorter_names_without_a_network(filled: HubServer) -> None:
    asked = len(filled.requests)
    for name, content in (("hf:org/m", _Q4), ("hf:org/m:q8_0", _Q8), ("hf:org/m/m-Q8_0.gguf", _Q8)):
        found = find_local(name)
        assert found and found[0].read_bytes() == content
    for name in ("hf:org/m:Q2_K", "hf:org/none", "hf:org/m/none.gguf", "hf:org", "https://host/x.gguf"):
        assert find_local(name) is None
    assert len(filled.requests) == asked


def test_two_models_with_one_label_are_asked_about(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add_repo("org/two", {"A-0.5B-Q4_K_M.gguf": _Q4, "A-1.5B-Q4_K_M.gguf": _Q8})
    both = ("hf:org/two/A-0.5B-Q4_K_M.gguf", "hf:org/two/A-1.5B-Q4_K_M.gguf")
    code, out, err = _run(capsys, "pull", "hf:org/two:Q4_K_M")
    assert (code, out) == (2, "") and all(name in err for name in both)
    pull(find_remote(both[0]))
    assert find_local("hf:org/two:Q4_K_M") == find_local(both[0])  # the only one here
    pull(find_remote(both[1]))
    assert _names() == sorted(both)
    with pytest.raises(UsageError, match="holds 2 models as Q4_K_M; name one: "):
        find_local("hf:org/two:Q4_K_M")
    code, out, err = _run(capsys, "remove", "hf:org/two:Q4_K_M", "--yes")
    assert (code, out) == (2, "") and all(name in err for name in both)
    assert _names() == sorted(both)
    assert _run(capsys, "remove", both[0], "--yes")[0] == 0
    assert _names() == [both[1]]


def test_a_split_url_model_lies_together(hub: HubServer) -> None:
    urls = [hub.add_file(name.rpartition("/")[2], content) for name, content in _SHARDS.items()]
    paths = pull(find_remote(urls[1]))
    assert [path.read_bytes() for path in paths] == list(_SHARDS.values())
    assert len({path.parent for path in paths}) == 1
    assert _names() == [urls[0]]
    assert local_files(find_remote(urls[2])) == paths


def test_a_new_commit_is_another_model_until_pulled(filled: HubServer) -> None:
    old = local_files(find_remote("hf:org/m"))
    filled.add_repo("org/m", {"m-Q4_K_M.gguf": _Q4, "m-Q8_0.gguf": _Q4[::-1]})
    assert local_files(find_remote("hf:org/m:Q8_0")) is None
    before = sum(filled.bytes_sent.values())
    new = pull(find_remote("hf:org/m"))  # the same content under another commit
    assert sum(filled.bytes_sent.values()) == before and new != old
    assert find_local("hf:org/m") == new
    (listed,) = (one for one in local_models() if one.name == "hf:org/m/m-Q4_K_M.gguf")
    assert listed.paths == new and listed.size_bytes == len(_Q4)  # of two revisions, on the disk once


def test_a_part_is_no_model(filled: HubServer) -> None:
    filled.add_repo("org/p", {"p-Q4_0.gguf": _Q4})
    filled.misbehave("drop", 70_000, path="*.gguf")
    url = filled.add_file("part.gguf", _Q8)
    for name in ("hf:org/p", url):
        with pytest.raises(ModelError):
            pull(find_remote(name), patience=Patience(tries=1))
        assert local_files(find_remote(name)) is None and find_local(name) is None
    parts = [one for one in local_models() if not one.complete]
    assert [(one.name, one.kind) for one in parts] == [("hf:org/p", "partial"), (url, "partial")]
    assert all(60_000 < one.size_bytes <= 70_000 for one in parts)
    for one in parts:
        assert remove(one.name) == one.size_bytes
    assert all(one.complete for one in local_models()) and len(local_models()) == 5


def test_a_split_model_with_a_shard_missing_is_incomplete(filled: HubServer) -> None:
    name = "hf:org/big/big/big-Q8_0-00001-of-00003.gguf"
    model = next(one for one in local_models() if one.name == name)
    model.paths[1].unlink()
    assert not next(one for one in local_models() if one.name == name).complete
    assert find_local(name) is None and local_files(find_remote(name)) is None


def test_removing_frees_what_nobody_else_uses(filled: HubServer) -> None:
    q8 = cache_paths(find_remote("hf:org/m:Q8_0"), find_remote("hf:org/m:Q8_0").files[0])
    assert remove("hf:org/m:Q8_0") == len(_Q8)
    assert not q8.blob.exists() and not q8.shown.is_symlink()
    assert find_local("hf:org/m:Q4_K_M")
    remove("hf:org/m")
    assert not hub_cache().joinpath("models--org--m").exists()
    assert remove("hf:org/big") == 150_000
    assert remove(f"{filled.url}/files/u.gguf") == len(_Q4)
    assert remove("hf:org/st") == 5002
    assert _names() == [] and list(urls_folder().iterdir()) == []


def test_content_that_another_revision_uses_stays(filled: HubServer) -> None:
    filled.add_repo("org/m", {"renamed-Q4_K_M.gguf": _Q4})
    (path,) = pull(find_remote("hf:org/m"))
    assert remove("hf:org/m/m-Q4_K_M.gguf") == 0
    assert path.read_bytes() == _Q4
    assert remove("hf:org/m/renamed-Q4_K_M.gguf") == len(_Q4)


def test_what_is_being_downloaded_is_not_removed(hub: HubServer) -> None:
    hub.add_repo("org/p", {"p-Q4_0.gguf": _Q4})
    hub.misbehave("drop", 70_000, path="*.gguf")
    for name in ("hf:org/p", hub.add_file("part.gguf", _Q8)):
        model = find_remote(name)
        with pytest.raises(ModelError):
            pull(model, patience=Patience(tries=1))
        place = cache_paths(model, model.files[0])
        with FileLock(place.lock), pytest.raises(ModelError, match="being downloaded by another"):
            remove(name)
        assert place.partial.exists()


def test_other_peoples_things_stay(filled: HubServer, tmp_path: Path) -> None:
    mine = tmp_path / "mine.gguf"
    mine.write_bytes(b"x")
    dataset = hub_cache() / "datasets--org--m" / "snapshots" / "a" / "d.gguf"
    dataset.parent.mkdir(parents=True)
    dataset.write_bytes(b"x")
    for name in (str(mine), "hf:org/none", "hf:org", "hf:", "hf:org/m:Q2_K", "https://host/none.gguf"):
        with pytest.raises(ModelNotFoundError, match="not on this disk"):
            matching(name)
    remove("hf:org/m")
    assert mine.exists() and dataset.exists() and len(_names()) == 3


def test_pull_tells_its_plan_and_where_the_model_lies(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    commit = hub.add_repo("org/m", {"m-Q4_K_M.gguf": _Q4, "m-Q8_0.gguf": _Q8})
    code, out, err = _run(capsys, "pull", "hf:org/m:Q8_0")
    path = Path(out.strip())
    assert code == 0 and path.read_bytes() == _Q8 and path.name == "m-Q8_0.gguf"
    assert "hf:org/m:Q8_0: 1 file, 0.19 MiB, in " in err and "m-Q8_0.gguf  0.19 MiB" in err
    code, out, err = _run(capsys, "pull", "hf:org/m:Q8_0", "--json")
    assert code == 0 and "all of it is here" in err
    assert json.loads(out) == {
        "model": "hf:org/m:Q8_0",
        "revision": commit,
        "size_bytes": len(_Q8),
        "downloaded_bytes": 0,
        "files": [{"name": "m-Q8_0.gguf", "path": str(path), "size_bytes": len(_Q8)}],
    }


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("pull", "demo"), 2, "pull takes hf:org/repo"),
        (("pull", "./m.gguf"), 2, "pull takes hf:org/repo"),
        (("pull", "hf.co/org/repo:Q4_K_M"), 2, "this one is hf:org/repo:Q4_K_M"),
        (("remove", "org/repo"), 2, "on the hub it is hf:org/repo"),
        (("pull", "hf:org/none"), 4, "there is no hf:org/none"),
        (("remove", "./m.gguf", "--yes"), 2, "delete other files yourself"),
        (("remove", "hf:org/none", "--yes"), 4, "memfit models lists what is"),
    ],
)
def test_mistakes_are_explained(
    hub: HubServer, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    got, out, err = _run(capsys, *arguments)
    assert (got, out) == (code, "") and words in err


def test_models_are_shown(filled: HubServer, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, "models")
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()] == _names()
    assert "0.10 MiB  gguf, last used 20" in out
    code, out, _ = _run(capsys, "models", "--json")
    assert [one["model"] for one in json.loads(out)["models"]] == _names()
    assert {key for one in json.loads(out)["models"] for key in one} == {
        "model",
        "kind",
        "complete",
        "size_bytes",
        "last_used",
        "loss",
        "paths",
    }


@pytest.mark.parametrize(("answer", "stays"), [("y", False), ("n", True), ("", True)])
def test_remove_asks(
    filled: HubServer,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: str,
    stays: bool,
) -> None:
    def asked(*_: Any, **__: Any) -> bool:
        return answer == "y"

    monkeypatch.setattr(remove_command.click, "confirm", asked)
    monkeypatch.setattr(remove_command, "sys", SimpleNamespace(stdin=SimpleNamespace(isatty=lambda: True)))
    code, out, err = _run(capsys, "remove", "hf:org/m:Q8_0")
    assert code == 0 and "hf:org/m/m-Q8_0.gguf  0.19 MiB  gguf" in err
    assert ("hf:org/m/m-Q8_0.gguf" in _names()) == stays
    assert out == ("" if stays else "freed 0.19 MiB\n")


def test_remove_without_anybody_to_ask(filled: HubServer) -> None:
    command = [sys.executable, "-m", "memfit", "remove", "hf:org/m"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    assert done.returncode == 2 and "add --yes" in done.stderr and len(_names()) == 5
    command += ["--yes", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30)
    assert json.loads(done.stdout) == {
        "model": "hf:org/m",
        "removed": ["hf:org/m/m-Q4_K_M.gguf", "hf:org/m/m-Q8_0.gguf"],
        "freed_bytes": len(_Q4) + len(_Q8),
    }


def test_long_downloads_are_shown_in_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    from memfit.cli.progress import _lines

    said: list[str] = []
    show = _lines("downloading", said.append)
    for done in range(0, 2049, 8):
        show(done * MIB, 2048 * MIB)
    assert len(said) == 11 and said[5] == "downloading 1.00 GiB of 2.00 GiB"
