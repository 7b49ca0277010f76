"""Downloads from a hub that fails, lies and changes: the file is identical, or there is a clear error.

`_assert_nothing_half` looks after each of them: whatever has a final name is whole.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from hub_server import HubServer
from memfit.errors import ModelError, ModelNotFoundError
from memfit.headers.impostors import HEAD_BYTES
from memfit.hub.cache_layout import cache_paths, hub_cache, urls_folder
from memfit.hub.download import missing_bytes, pull
from memfit.hub.library import local_files
from memfit.hub.remote_files import RemoteFile, RemoteModel
from memfit.hub.repository import find_remote
from memfit.hub.transfer import Patience
from memfit.units import MIB
from thorough import times

_CONTENT = random.Random(1).randbytes(3 * MIB + 17)
_OTHER = random.Random(2).randbytes(2 * MIB)
_HASTY = Patience(tries=3, silence_seconds=0.4, backoff_seconds=0.01, longest_wait_seconds=5)
_BODY = "*/*.gguf"  # a plain file's path, a hub's, and its content network's


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture(params=["hub", "url"])
def model(request: pytest.FixtureRequest, hub: HubServer) -> RemoteModel:
    """_CONTENT, from both kinds of servers."""
    if request.param == "url":
        return find_remote(hub.add_file("m.gguf", _CONTENT))
    hub.add_repo("org/m", {"m-Q4_K_M.gguf": _CONTENT})
    return find_remote("hf:org/m")


def _hub_model(hub: HubServer) -> RemoteModel:
    hub.add_repo("org/m", {"m-Q4_K_M.gguf": _CONTENT})
    return find_remote("hf:org/m")


def _url_model(hub: HubServer) -> RemoteModel:
    return find_remote(hub.add_file("m.gguf", _CONTENT))


def _whole_files() -> list[Path]:
    """Everything that has a model's final name."""
    hub = [*hub_cache().glob("models--*/snapshots/*/**/*.*"), *hub_cache().glob("models--*/blobs/*")]
    files = [*hub, *urls_folder().glob("*/*/*.gguf")]
    return [path for path in files if path.is_file() and path.suffix != ".incomplete"]


def _partials() -> list[Path]:
    return [*hub_cache().glob("models--*/blobs/*.incomplete"), *urls_folder().glob("*/*/*.incomplete")]


def _assert_nothing_half(*allowed: bytes) -> None:
    for path in _whole_files():
        assert path.read_bytes() in (allowed or (_CONTENT,)), path


def test_what_arrives_is_identical_and_told(hub: HubServer, model: RemoteModel) -> None:
    told: list[tuple[int, int]] = []
    checked: list[tuple[int, int]] = []
    assert local_files(model) is None and missing_bytes(model) == len(_CONTENT)
    paths = pull(
        model,
        on_progress=lambda done, total: told.append((done, total)),
        on_check=lambda done, total: checked.append((done, total)),
    )
    assert [path.read_bytes() for path in paths] == [_CONTENT]
    assert local_files(model) == paths and missing_bytes(model) == 0 and _partials() == []
    assert told[-1] == checked[-1] == (len(_CONTENT), len(_CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    before = sum(hub.bytes_sent.values())
    assert pull(model) == paths
    assert sum(hub.bytes_sent.values()) == before


def test_the_official_client_finds_a_hub_download(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download, scan_cache_dir, try_to_load_from_cache

    model = _hub_model(hub)
    (path,) = pull(model)
    file, commit = model.files[0], model.revision
    assert try_to_load_from_cache("org/m", file.name, cache_dir=hub_cache(), revision=commit) == str(path)
    asked = len(hub.requests)
    found = hf_hub_download("org/m", file.name, revision=commit, cache_dir=hub_cache(), endpoint=hub.url)
    assert found == str(path) and len(hub.requests) == asked
    scanned = scan_cache_dir(hub_cache())
    assert not scanned.warnings and not scanned.incomplete_files
    (revision,) = next(iter(scanned.repos)).revisions
    assert [one.blob_path.name for one in revision.files] == [_sha256(_CONTENT)]


def test_a_download_by_the_official_client_is_used(hub: HubServer) -> None:
    from huggingface_hub import hf_hub_download

    model = _hub_model(hub)
    path = hf_hub_download("org/m", model.files[0].name, cache_dir=hub_cache(), endpoint=hub.url)
    before = sum(hub.bytes_sent.values())
    assert local_files(model) == pull(model) == (Path(path),)
    assert sum(hub.bytes_sent.values()) == before


def test_small_files_are_checked_as_git_does(hub: HubServer) -> None:
    files = {"config.json": b"{}", "model.safetensors": _CONTENT}
    hub.add_repo("org/s", files)
    model = find_remote("hf:org/s")
    config, weights = pull(model)
    assert (config.read_bytes(), weights.read_bytes()) == (b"{}", _CONTENT)
    config.resolve().write_bytes(b"[]")
    assert [path.read_bytes() for path in pull(model)] == [b"{}", _CONTENT]
    hub.behave()
    config.resolve().unlink()
    hub.misbehave("corrupt", 0, path="*/config.json")
    with pytest.raises(ModelError, match="checksum"):
        pull(model)
    assert local_files(model) is None


@pytest.mark.parametrize(
    ("kind", "value", "times"),
    [
        ("drop", 100_000, 2),
        ("drop", 2 * MIB, 1),
        ("drop", 0, 2),
        ("silence", None, 1),
        ("stall", 1_500_000, 1),
        ("status", 503, 2),
        ("status", 500, 1),
    ],
)
def test_what_passes_is_waited_for(
    hub: HubServer, model: RemoteModel, kind: str, value: int | None, times: int
) -> None:
    hub.misbehave(kind, value, path=_BODY, times=times)
    (path,) = pull(model, patience=_HASTY)
    assert path.read_bytes() == _CONTENT


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        ("drop", 0, "3 times in a row"),
        ("silence", None, "says nothing for 0 s, 3 times"),
        ("stall", 1000, "says nothing"),
        ("status", 500, "answers 500"),
        ("status", 429, "answers 429"),
        ("loop", None, "redirects without end"),
        ("range", 5, "another range"),
    ],
)
def test_what_stays_is_an_error(
    hub: HubServer, model: RemoteModel, kind: str, value: int | None, words: str
) -> None:
    hub.misbehave("drop", 2 * MIB, path=_BODY, times=1)
    with pytest.raises(ModelError):
        pull(model, patience=Patience(tries=1))
    hub.misbehave(kind, value, path=_BODY)
    began = time.monotonic()
    with pytest.raises(ModelError, match=words):
        pull(model, patience=_HASTY)
    assert time.monotonic() - began < 5
    _assert_nothing_half()
    assert local_files(model) is None and _whole_files() == []
    hub.behave()
    before = sum(hub.bytes_sent.values())
    assert pull(model)[0].read_bytes() == _CONTENT
    assert sum(hub.bytes_sent.values()) - before <= MIB + 70_000  # not from zero


def test_a_wish_for_rest_is_granted_if_it_is_modest(hub: HubServer, model: RemoteModel) -> None:
    hub.misbehave("status", 429, path=_BODY, times=1, headers={"Retry-After": "1"})
    began = time.monotonic()
    pull(model, patience=_HASTY)
    assert time.monotonic() - began >= 1
    shutil.rmtree(cache_paths(model, model.files[0]).blob.parent)
    hub.misbehave("status", 429, path=_BODY, times=1, headers={"Retry-After": "3600"})
    with pytest.raises(ModelError, match="3600 s of rest"):
        pull(model, patience=_HASTY)


def test_a_server_that_drips_is_silent(hub: HubServer, model: RemoteModel) -> None:
    hub.bytes_per_second = 20_000  # in pieces of 64 KiB: one each three seconds
    began = time.monotonic()
    with pytest.raises(ModelError, match=r"says nothing|only"):
        pull(model, patience=Patience(tries=2, silence_seconds=1, backoff_seconds=0.01))
    assert time.monotonic() - began < 8


def test_ignored_ranges_start_again_from_zero(hub: HubServer, model: RemoteModel) -> None:
    hub.misbehave("drop", 2 * MIB, path=_BODY, times=1)
    with pytest.raises(ModelError, match=r"2\.00 MiB are kept"):
        pull(model, patience=Patience(tries=1))
    assert missing_bytes(model) == len(_CONTENT) - 2 * MIB
    hub.misbehave("ignore_range", path=_BODY)
    assert pull(model)[0].read_bytes() == _CONTENT


def test_a_server_without_etags_is_never_resumed(hub: HubServer) -> None:
    model = find_remote(hub.add_file("m.gguf", _CONTENT, etag=""))
    hub.misbehave("drop", 2 * MIB, path=_BODY, times=1)
    assert pull(model, patience=_HASTY)[0].read_bytes() == _CONTENT
    assert [one.range for one in hub.requests_of(_BODY, "GET")[1:]] == [None, None]
    assert local_files(model) is not None


def test_a_wrong_size_is_not_taken(hub: HubServer, model: RemoteModel) -> None:
    for kind, lie in (("total", 1000), ("total", -1000), ("length", 1000), ("length", -1000)):
        hub.misbehave(kind, lie, path=_BODY)
        with pytest.raises(ModelError):
            pull(model, patience=_HASTY)
        hub.behave()
        assert local_files(model) is None
        _assert_nothing_half()
    assert pull(model)[0].read_bytes() == _CONTENT


def test_a_wrong_checksum_is_deleted(hub: HubServer) -> None:
    model = _hub_model(hub)
    hub.misbehave("corrupt", 12_345, path=_BODY)
    with pytest.raises(ModelError, match=r"checksum .* and not .*deleted"):
        pull(model)
    assert _whole_files() == [] and _partials() == []
    hub.behave()
    assert pull(model)[0].read_bytes() == _CONTENT


def test_damage_on_this_disk_is_mended(hub: HubServer, model: RemoteModel) -> None:
    (path,) = pull(model)
    for damage in (_CONTENT[:-1], _CONTENT[:-1] + b"?"):
        path.resolve().write_bytes(damage)
        said: list[str] = []
        assert pull(model, say=said.append)[0].read_bytes() == _CONTENT
        assert "damaged" in said[0]


def test_a_partial_file_that_is_rubbish_is_found_out(hub: HubServer) -> None:
    model = _hub_model(hub)
    partial = cache_paths(model, model.files[0]).partial
    partial.parent.mkdir(parents=True)
    for rubbish in (bytes(len(_CONTENT)), bytes(1000)):
        partial.write_bytes(rubbish)
        with pytest.raises(ModelError, match="checksum"):
            pull(model)
    partial.write_bytes(bytes(len(_CONTENT) + 1))
    assert pull(model)[0].read_bytes() == _CONTENT


@pytest.mark.parametrize("new", [_OTHER, _CONTENT[::-1]], ids=["size", "content"])
@pytest.mark.parametrize("where", [1 * MIB, 2 * MIB])
def test_a_url_that_changes_starts_over_once(hub: HubServer, new: bytes, where: int) -> None:
    model = _url_model(hub)
    hub.when(_BODY, lambda: hub.add_file("m.gguf", new), bytes_sent=where)
    hub.misbehave("drop", where, path=_BODY, times=1)
    said: list[str] = []
    (path,) = pull(model, patience=_HASTY, say=said.append)
    assert path.read_bytes() == new and "changed on the server" in said[0]
    now = find_remote(model.source)
    assert local_files(now) == (path,) and local_files(model) is None
    assert len(list(path.parent.parent.iterdir())) <= 2  # the lock, and nothing of the old content


def test_a_url_that_changes_twice_is_an_error(hub: HubServer) -> None:
    model = _url_model(hub)
    hub.misbehave("drop", MIB, path=_BODY, times=1)
    for number, content in ((3, _OTHER), (4, _CONTENT[:-5])):  # the first request asks, the second is cut off
        hub.when(_BODY, lambda content=content: hub.add_file("m.gguf", content), requests=number)
    with pytest.raises(ModelError, match="for the second time"):
        pull(model, patience=_HASTY)
    assert _whole_files() == []


@pytest.mark.parametrize("new", [_OTHER, _CONTENT[::-1]], ids=["size", "content"])
def test_a_commit_that_changes_is_an_error(hub: HubServer, new: bytes) -> None:
    model = _hub_model(hub)
    hub.misbehave("drop", MIB, path=_BODY, times=1)
    hub.when(_BODY, lambda: hub.replace_file("org/m", "m-Q4_K_M.gguf", new), bytes_sent=MIB)
    with pytest.raises(ModelError, match="another content now than the hub listed; run memfit pull again"):
        pull(model, patience=_HASTY)
    assert _whole_files() == []
    assert pull(find_remote("hf:org/m"))[0].read_bytes() == new


def test_closed_doors_say_what_to_do(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add_repo("org/m", {"m-Q4_K_M.gguf": _CONTENT}, gated=True)
    model = find_remote("hf:org/m")
    with pytest.raises(ModelError, match=rf"gated.*no token.*{hub.url}/org/m.*HF_TOKEN.*hf auth login"):
        pull(model)
    monkeypatch.setenv("HF_TOKEN", "hf_somebody")
    with pytest.raises(ModelError, match="has no access yet"):
        pull(model)
    hub.tokens.add("hf_somebody")
    assert pull(model)[0].read_bytes() == _CONTENT
    assert {one.token for one in hub.requests_of("/cdn/*")} == {None}
    hub.add_repo("org/m", {"m-Q4_K_M.gguf": _OTHER}, private=True)
    model = find_remote("hf:org/m")
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelNotFoundError, match="private"):
        pull(model)


def test_a_bad_token_is_said(hub: HubServer) -> None:
    model = _hub_model(hub)
    told = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.misbehave("status", 401, path=_BODY, headers=told)
    with pytest.raises(ModelError, match="does not accept your token"):
        pull(model)


def test_a_signed_address_that_expired_is_asked_for_again(hub: HubServer) -> None:
    model = _hub_model(hub)
    hub.misbehave("status", 403, path="/cdn/*", times=1)
    assert pull(model, patience=_HASTY)[0].read_bytes() == _CONTENT
    assert len(hub.requests_of("/org/m/resolve/*", "GET")) == 2


def test_a_full_disk_in_between_leaves_a_part(
    hub: HubServer, model: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ModelError, match=r"cannot keep .* No space left on device"):
        pull(model)
    assert _whole_files() == []


def test_what_is_gone_is_not_found(hub: HubServer, model: RemoteModel) -> None:
    hub.misbehave("status", 404, path=_BODY)
    with pytest.raises(ModelNotFoundError, match=r"nothing is at|any more"):
        pull(model)


def test_offline_is_said(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = _hub_model(hub)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="HF_HUB_OFFLINE"):
        pull(model)


def test_a_dead_server_is_an_error(hub: HubServer, model: RemoteModel) -> None:
    hub.stop()
    with pytest.raises(ModelError, match=r"cannot download .* 3 times in a row"):
        pull(model, patience=_HASTY)


def test_a_full_disk_is_seen_before(
    hub: HubServer, model: RemoteModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def usage(_: Path) -> SimpleNamespace:
        return SimpleNamespace(free=len(_CONTENT))

    monkeypatch.setattr(shutil, "disk_usage", usage)
    before = len(hub.requests)
    with pytest.raises(ModelError, match=r"needs 259.00 MiB \(3.00 MiB .* 3.00 MiB are free, short 256.00"):
        pull(model)
    assert len(hub.requests) == before


def test_a_folder_that_cannot_be_written_is_an_error(hub: HubServer, model: RemoteModel) -> None:
    root = cache_paths(model, model.files[0]).lock.parent
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text("a file where a folder should be")
    with pytest.raises(ModelError, match="cannot keep"):
        pull(model)


@pytest.mark.parametrize("name", ["../m.gguf", "/m.gguf", "a//m.gguf", "a\\m.gguf", "m\n.gguf", ".."])
def test_a_name_that_leads_out_is_refused(hub: HubServer, name: str) -> None:
    file = RemoteFile(name=name, url=f"{hub.url}/m", size_bytes=1, etag="a" * 64, sha256=None)
    model = RemoteModel(source="hf:org/m", repo="org/m", revision="b" * 40, files=(file,))
    with pytest.raises(ModelError, match="no path"):
        pull(model)


@pytest.mark.parametrize(("etag", "revision"), [("../x", "b" * 40), ("a" * 64, ".."), ("", "b" * 40)])
def test_an_identity_that_leads_out_is_refused(hub: HubServer, etag: str, revision: str) -> None:
    file = RemoteFile(name="m.gguf", url=f"{hub.url}/m", size_bytes=1, etag=etag, sha256=None)
    model = RemoteModel(source="hf:org/m", repo="org/m", revision=revision, files=(file,))
    with pytest.raises(ModelError, match="no name"):
        pull(model)


def test_two_at_once_download_once(hub: HubServer, model: RemoteModel) -> None:
    hub.bytes_per_second = 6 * MIB
    command = [sys.executable, "-m", "memfit", "pull", model.source]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)
    ]
    told = [process.communicate(timeout=30) for process in running]
    assert [process.returncode for process in running] == [0, 0], told
    assert told[0][0] == told[1][0] != ""
    body = sum(sent for path, sent in hub.bytes_sent.items() if path.endswith(".gguf"))
    assert body <= len(_CONTENT) + 3 * HEAD_BYTES  # a URL's size is asked with its first bytes


def _killed_at_random(source: str, hub: HubServer, rng: random.Random, most_bytes: int) -> bool:
    """Start a pull and kill it once it got a random share; False if it was faster and is done."""
    process = subprocess.Popen(
        [sys.executable, "-m", "memfit", "pull", source], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    enough = sum(hub.bytes_sent.values()) + rng.randrange(most_bytes)
    deadline = time.monotonic() + 10
    while process.poll() is None and sum(hub.bytes_sent.values()) < enough:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(rng.random() * 0.05)
    done = process.poll() is not None
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate(timeout=10)
    assert process.returncode in (0, -signal.SIGKILL), err
    return not done


def _change_repo(hub: HubServer, content: bytes) -> str:
    hub.add_repo("org/big", {"m-Q4_K_M.gguf": content})
    return "hf:org/big"


def _change_url(hub: HubServer, content: bytes) -> str:
    return hub.add_file("big.gguf", content)


@pytest.mark.parametrize("change", [_change_repo, _change_url])
def test_killed_at_random_moments_and_changed_once(
    hub: HubServer, change: Callable[[HubServer, bytes], str]
) -> None:
    seed = int.from_bytes(os.urandom(4), "little")
    print(f"seed {seed}")
    rng = random.Random(seed)
    old, new = rng.randbytes(24 * MIB), rng.randbytes(24 * MIB)
    source = change(hub, old)
    hub.bytes_per_second = 16 * MIB
    kills, tries, changed = 0, times(4, 10), times(1, 3)
    for number in range(tries):
        if number == changed:
            change(hub, new)
            hub.bytes_sent.clear()
        kills += _killed_at_random(source, hub, rng, 5 * MIB)
        _assert_nothing_half(old, new)
        assert _whole_files() == [] or number > changed
    assert kills >= tries // 2
    hub.bytes_per_second = None
    done = subprocess.run(
        [sys.executable, "-m", "memfit", "pull", source], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert _sha256(Path(done.stdout.strip()).read_bytes()) == _sha256(new)
    # Starts from zero would have sent more; what was under way at a kill is lost.
    assert sum(hub.bytes_sent.values()) < 1.5 * len(new)


def test_ctrl_c_leaves_a_part_that_is_resumed(hub: HubServer) -> None:
    source = _change_url(hub, _CONTENT)
    hub.bytes_per_second = 2 * MIB
    command = [sys.executable, "-m", "memfit", "pull", source]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while sum(hub.bytes_sent.values()) < MIB:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "") and "memfit: interrupted" in err
    assert _partials()[0].stat().st_size >= MIB - 70_000 and _whole_files() == []
    assert local_files(find_remote(source)) is None
