"""The test hub against huggingface_hub's own client, which is the judge of whether it speaks the protocol."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from hub_server import HubServer, Sparse

_CONTENT = os.urandom(300_000)
_FILES = {"m.gguf": _CONTENT, "config.json": b'{"a": 1}'}


def test_the_official_client_lists_and_downloads(hub: HubServer, tmp_path: Path) -> None:
    commit = hub.add_repo("org/m", _FILES)
    info = HfApi(endpoint=hub.url).model_info("org/m", files_metadata=True)
    assert info.sha == commit and info.siblings
    known = {one.rfilename: one for one in info.siblings}
    assert known["m.gguf"].lfs and known["m.gguf"].lfs.sha256 == hashlib.sha256(_CONTENT).hexdigest()
    assert known["m.gguf"].size == len(_CONTENT)
    assert known["config.json"].blob_id == hashlib.sha1(b'blob 8\0{"a": 1}').hexdigest()
    assert HfApi(endpoint=hub.url).model_info("org/m", revision=commit).sha == commit
    for name, content in _FILES.items():
        path = hf_hub_download("org/m", name, endpoint=hub.url, cache_dir=tmp_path / "hub", token="secret")
        assert Path(path).read_bytes() == content
    via_cdn = hub.requests_of("/cdn/*", "GET")
    assert len(via_cdn) == 1 and via_cdn[0].token is None  # tokens stay with the hub
    assert hub.bytes_sent[via_cdn[0].path] == len(_CONTENT)


def test_an_owner_is_listed(hub: HubServer) -> None:
    for name in ("org/a", "org/b", "other/c"):
        hub.add_repo(name, {})
    hub.add_repo("org/secret", {}, private=True)
    listed = [one.id for one in HfApi(endpoint=hub.url).list_models(author="org")]
    assert listed == ["org/a", "org/b"]


def test_doors_are_closed_without_a_token(hub: HubServer, tmp_path: Path) -> None:
    hub.add_repo("org/gated", _FILES, gated=True)
    hub.add_repo("org/private", _FILES, private=True)
    api = HfApi(endpoint=hub.url)
    assert api.model_info("org/gated").gated == "manual"
    for token in (None, "of somebody else"):
        with pytest.raises(GatedRepoError):
            hf_hub_download(
                "org/gated", "m.gguf", endpoint=hub.url, cache_dir=tmp_path / "hub", token=token or False
            )
    for name in ("org/private", "org/none"):
        with pytest.raises(RepositoryNotFoundError):
            api.model_info(name)
    hub.tokens.add("mine")
    assert api.model_info("org/private", token="mine").private


def test_a_file_of_64_gigabytes_takes_no_memory(hub: HubServer) -> None:
    url = hub.add_file("huge.gguf", Sparse(prefix=b"GGUF", size_bytes=64 * 10**9))
    start = httpx2.get(url, headers={"Range": "bytes=0-9"})
    assert start.status_code == 206 and start.content == b"GGUF" + bytes(6)
    assert start.headers["Content-Range"] == f"bytes 0-9/{64 * 10**9}"
    end = httpx2.get(url, headers={"Range": f"bytes={64 * 10**9 - 5}-"})
    assert end.content == bytes(5)
    assert httpx2.get(url, headers={"Range": f"bytes={64 * 10**9}-"}).status_code == 416


def test_it_misbehaves_as_often_as_asked(hub: HubServer) -> None:
    url = hub.add_file("m.gguf", _CONTENT)
    hub.misbehave("status", 429, times=2, headers={"Retry-After": "7"})
    assert [httpx2.get(url).status_code for _ in range(3)] == [429, 429, 200]
    hub.misbehave("ignore_range", times=1)
    assert httpx2.get(url, headers={"Range": "bytes=5-"}).status_code == 200
    hub.misbehave("range", 3, times=1)
    assert httpx2.get(url, headers={"Range": "bytes=5-"}).content == _CONTENT[8:]
    hub.misbehave("corrupt", 10, times=1)
    assert httpx2.get(url).content != _CONTENT
    for kind, value in (("drop", 1000), ("length", 1000), ("total", 1000)):
        hub.misbehave(kind, value, times=1)
        with pytest.raises(httpx2.RemoteProtocolError):
            httpx2.get(url)
    hub.misbehave("loop", times=-1)
    with pytest.raises(httpx2.TooManyRedirects):
        httpx2.get(url, follow_redirects=True)
    hub.behave()
    for kind in ("silence", "stall"):
        hub.misbehave(kind, 1000, times=1)
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.get(url, timeout=0.2)


def test_another_client_reads_it_too_and_files_change_when_told(hub: HubServer) -> None:
    url = hub.add_file("m.gguf", b"old")
    hub.when("/files/*", lambda: hub.add_file("m.gguf", b"new"), requests=2)
    seen = []
    for _ in range(2):
        with urllib.request.urlopen(url) as answer:
            seen.append((answer.read(), answer.headers["ETag"]))
    assert [content for content, _ in seen] == [b"old", b"new"] and seen[0][1] != seen[1][1]
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{hub.url}/nothing")
    caught.value.close()
    assert caught.value.code == 404
