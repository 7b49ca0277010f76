"""Headers of models on a server, read in place; servers that lie, stall, refuse and change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_files import F32, Q8_0, GgufFile, Tensor, Value, text

from hub_server import HubServer, Sparse
from memfit.errors import HeaderError, MemfitError, ModelError, ModelNotFoundError, UsageError
from memfit.hardware.folders import cache_folder
from memfit.headers import read_model
from memfit.headers.model_spec import ModelSpec
from memfit.hub import http
from memfit.hub.header_only import is_header_only
from memfit.hub.remote_model import find_paths, list_choices
from memfit.hub.repository import find_remote, repositories_of
from memfit.hub.resolve import resolve

_ROWS = 1 << 20  # of 32 numbers each: 34 MiB


def _header(**metadata: Value) -> bytes:
    tensors = [Tensor("token_embd.weight", (32, _ROWS), Q8_0), Tensor("output_norm.weight", (32,), F32)]
    facts = {"general.architecture": text("llama"), "llama.context_length": Value(4, 512), **metadata}
    return GgufFile(facts, tensors, data=b"").encode()


def _sparse(header: bytes) -> Sparse:
    return Sparse(prefix=header, size_bytes=len(header) + 34 * _ROWS + 128)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_BACKOFF_SECONDS", 0.01)
    monkeypatch.setattr(http, "_SILENCE_SECONDS", 0.5)
    monkeypatch.setattr(http, "_MOST_WAIT_SECONDS", 0.05)


@pytest.fixture
def address(hub: HubServer) -> str:
    return hub.add_file("org/model-Q8_0.gguf", _sparse(_header()))


def find_model(name: str) -> ModelSpec:
    """In this process, so that its patience can be short."""
    return read_model(find_paths(name)[0], source=name)


def _kept() -> list[Path]:
    return list((cache_folder() / "headers").glob("*"))


def test_a_header_is_all_that_is_read(hub: HubServer, tmp_path: Path) -> None:
    content = _sparse(_header())
    hub.add_repo("org/model-GGUF", {"model-Q8_0.gguf": content, "README.md": b"hello"})
    spec = find_model("hf:org/model-GGUF")
    here = tmp_path / "model-Q8_0.gguf"
    here.write_bytes(content.prefix)
    with here.open("r+b") as file:
        file.truncate(content.size_bytes)
    local = read_model(here, source="hf:org/model-GGUF")
    assert (spec.tensors, spec.metadata, spec.file_bytes) == (local.tensors, local.metadata, local.file_bytes)
    assert all(map(is_header_only, spec.paths)) and not is_header_only(here)
    assert spec.paths[0].stat().st_blocks * 512 < 1 << 20  # a hole where the weights would be
    assert sum(size for path, size in hub.bytes_sent.items() if path.endswith(".gguf")) <= 128 * 1024
    before = len(hub.requests_of("*.gguf"))
    assert find_model("hf:org/model-GGUF:q8_0").tensors == spec.tensors
    assert len(hub.requests_of("*.gguf")) == before  # known by what identifies it


def test_a_long_vocabulary_comes_in_pieces(hub: HubServer) -> None:
    words = Value(9, ["x" * 300] * 10_000, element=8)
    content = _sparse(_header(**{"tokenizer.ggml.tokens": words}))
    url = hub.add_file("model.gguf", content)
    assert find_model(url).vocabulary == 10_000
    sent = sum(hub.bytes_sent.values())
    assert len(content.prefix) <= sent <= len(content.prefix) + 1_500_000


def test_a_plain_url_is_asked_whether_it_changed(hub: HubServer, address: str) -> None:
    assert find_model(address).context_length == 512
    (kept,) = _kept()
    find_model(address)
    assert _kept() == [kept]
    hub.add_file("org/model-Q8_0.gguf", _sparse(_header(**{"llama.context_length": Value(4, 1024)})))
    assert find_model(address).context_length == 1024


def test_a_server_without_etags_is_read_each_time(hub: HubServer) -> None:
    address = hub.add_file("model.gguf", _sparse(_header()), etag="")
    assert find_model(address).context_length == 512
    hub.add_file("model.gguf", _sparse(_header(**{"llama.context_length": Value(4, 256)})), etag="")
    assert find_model(address).context_length == 256


@pytest.mark.parametrize(
    ("kind", "arguments", "match"),
    [
        ("status", {"value": 404}, "nothing is at"),
        ("status", {"value": 403}, "no access"),
        ("status", {"value": 500}, "500, 4 times"),
        ("status", {"value": 429, "headers": {"Retry-After": "3600"}}, "429, 4 times"),
        ("status", {"value": 418}, "418"),
        ("loop", {}, "redirects without end"),
        ("stall", {}, "says nothing for"),
        ("stall", {"value": 10}, "says nothing for"),
        ("drop", {"value": 10}, "cannot read"),
        ("range", {"value": 7}, "cannot read|another range"),
    ],
)
def test_misbehaviour_is_a_clear_error_and_nothing_is_kept(
    hub: HubServer, address: str, kind: str, arguments: dict[str, Any], match: str
) -> None:
    hub.misbehave(kind, **arguments)
    with pytest.raises(ModelError, match=match):
        find_model(address)
    assert _kept() == []
    hub.behave()
    assert find_model(address).context_length == 512


@pytest.mark.parametrize("kind", ["status", "drop"])
def test_what_passes_is_tried_again(hub: HubServer, address: str, kind: str) -> None:
    hub.misbehave(kind, 503 if kind == "status" else 5, times=2)
    assert find_model(address).context_length == 512


@pytest.mark.parametrize("value", [1, -1, 1 << 40])
def test_a_wrong_total_is_found_out(hub: HubServer, value: int) -> None:
    hub.add_repo("org/model", {"model-Q8_0.gguf": _sparse(_header())})
    hub.misbehave("total", value, path="*.gguf")
    with pytest.raises(ModelError, match="announced"):
        find_model("hf:org/model")
    assert _kept() == []


def test_a_server_without_ranges(hub: HubServer, address: str) -> None:
    hub.misbehave("ignore_range")
    assert find_model(address).context_length == 512  # the first piece held all of it
    url = hub.add_file("long.gguf", _sparse(_header(**{"general.name": text("n" * 300_000)})))
    with pytest.raises(ModelError, match="ignores range requests"):
        find_model(url)


def test_a_file_that_changes_between_two_pieces(hub: HubServer) -> None:
    long = {"general.name": text("n" * 300_000)}
    url = hub.add_file("long.gguf", _sparse(_header(**long)))
    hub.when("*long.gguf", lambda: hub.add_file("long.gguf", _sparse(_header())), requests=2)
    with pytest.raises(ModelError, match=r"changed|announced"):
        find_model(url)
    assert _kept() == []


@pytest.mark.parametrize("content", [b"", b"<html>not here</html>", _header()[:60]])
def test_what_is_no_model(hub: HubServer, content: bytes) -> None:
    address = hub.add_file("model.gguf", content)
    with pytest.raises((HeaderError, ModelError)):
        find_model(address)
    assert _kept() == []


def test_split_models(hub: HubServer) -> None:
    def shard(number: int, tensor: str) -> Sparse:
        facts = {
            "general.architecture": text("llama"),
            "llama.context_length": Value(4, 512),
            "split.no": Value(2, number),
            "split.count": Value(2, 2),
            "split.tensors.count": Value(5, 2),
        }
        header = GgufFile(facts, [Tensor(tensor, (32, _ROWS), Q8_0)], data=b"").encode()
        return Sparse(prefix=header, size_bytes=len(header) + 34 * _ROWS)

    shards = {"m-Q8_0-00001-of-00002.gguf": shard(0, "a"), "m-Q8_0-00002-of-00002.gguf": shard(1, "b")}
    hub.add_repo("org/model", {f"Q8_0/{name}": one for name, one in shards.items()})
    for name in ("hf:org/model", "hf:org/model:Q8_0", "hf:org/model/Q8_0/m-Q8_0-00002-of-00002.gguf"):
        spec = find_model(name)
        assert [one.name for one in spec.tensors] == ["a", "b"]
        assert spec.file_bytes == sum(one.size_bytes for one in shards.values())
    urls = [hub.add_file(name, one) for name, one in shards.items()]
    assert [path.name for path in find_model(urls[1]).paths] == list(shards)


def test_gated_private_and_missing(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"model-Q8_0.gguf": _sparse(_header())}
    hub.add_repo("org/gated", files, gated=True)
    hub.add_repo("org/private", files, private=True)
    with pytest.raises(ModelError, match=r"accept its terms at .*/org/gated.*HF_TOKEN"):
        find_model("hf:org/gated")
    with pytest.raises(ModelNotFoundError, match="private"):
        find_model("hf:org/private")
    with pytest.raises(ModelNotFoundError, match="there is no hf:org/nothing"):
        find_model("hf:org/nothing")
    hub.tokens.add("secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert find_model("hf:org/gated").context_length == 512
    assert find_model("hf:org/private").context_length == 512
    # The content network is another host, and no place for a token.
    assert not [one for one in hub.requests if "localhost" in one.headers.get("Host", "") and one.token]


def test_repositories_without_a_model(hub: HubServer) -> None:
    hub.add_repo("org/pickles", {"config.json": b"{}", "pytorch_model.bin": b"\x80\x04."})
    hub.add_repo("org/nothing", {"README.md": b"-"})
    hub.add_repo("org/gguf", {"model-Q8_0.gguf": _sparse(_header())})
    with pytest.raises(ModelError, match="pickles"):
        find_model("hf:org/pickles")
    with pytest.raises(ModelError, match="holds no model"):
        find_model("hf:org/nothing")
    with pytest.raises(UsageError, match="has no Q4_K_M; it has Q8_0"):
        find_model("hf:org/gguf:Q4_K_M")
    with pytest.raises(ModelNotFoundError, match=r"no file other\.gguf"):
        find_model("hf:org/gguf/other.gguf")


def test_two_models_with_one_label_are_asked_about(hub: HubServer) -> None:
    small, large = _sparse(_header()), _sparse(_header(**{"llama.context_length": Value(4, 1024)}))
    large = Sparse(prefix=large.prefix, size_bytes=large.size_bytes + 10_000_000)
    hub.add_repo(
        "org/two", {"A-0.5B-Q4_K_M.gguf": small, "A-1.5B-Q4_K_M.gguf": large, "A-0.5B-Q8_0.gguf": small}
    )
    for name in ("hf:org/two:Q4_K_M", "hf:org/two"):
        with pytest.raises(UsageError) as caught:
            find_remote(name)
        assert "2 models as Q4_K_M; name one: hf:org/two/A-1.5B-Q4_K_M.gguf (" in str(caught.value)
        assert "hf:org/two/A-0.5B-Q4_K_M.gguf (" in str(caught.value)
    assert find_remote("hf:org/two:Q8_0").files[0].name == "A-0.5B-Q8_0.gguf"
    assert find_remote("hf:org/two/A-0.5B-Q4_K_M.gguf").files[0].name == "A-0.5B-Q4_K_M.gguf"
    told = list_choices("org/two")
    assert "2 models as Q4_K_M" in told["clash"]
    assert [one["name"] for one in told["variants"]] == [
        "A-1.5B-Q4_K_M.gguf",
        "A-0.5B-Q4_K_M.gguf",
        "A-0.5B-Q8_0.gguf",
    ]
    hub.add_repo(
        "org/mtp", {"x-Q4_K_M.gguf": small, "MTP/x-MTP-Q4_K_M.gguf": small, "mmproj-F16.gguf": small}
    )
    assert find_remote("hf:org/mtp:Q4_K_M").files[0].name == "x-Q4_K_M.gguf"
    told = list_choices("org/mtp")
    assert (told["clash"], [one["name"] for one in told["variants"]]) == (None, ["Q4_K_M"])


def test_a_page_about_a_file_is_the_file(hub: HubServer) -> None:
    hub.add_repo("org/model", {"sub/model-Q8_0.gguf": _sparse(_header())})
    page = f"{hub.url}/org/model/blob/main/sub/model-Q8_0.gguf?download=true"
    assert find_model(page).context_length == 512
    assert not hub.requests_of("*/blob/*")
    for name in (f"{hub.url}/org/model", f"{hub.url}/org/model/tree/main", f"{hub.url}/org/model/"):
        with pytest.raises(UsageError, match=r"of a repository on the hub write hf:org/model$"):
            find_remote(name)


def test_a_gated_file_by_its_address_says_how_a_token_is_sent(hub: HubServer) -> None:
    hub.add_repo("org/gated", {"model-Q8_0.gguf": _sparse(_header())}, gated=True)
    with pytest.raises(
        ModelError, match=r"no access .*; hf:org/gated/model-Q8_0\.gguf is asked for with HF_TOKEN"
    ):
        find_remote(f"{hub.url}/org/gated/blob/main/model-Q8_0.gguf")


def test_names_that_are_almost_right(hub: HubServer) -> None:
    hub.add_repo("org/model", {"Model-Q8_0.gguf": _sparse(_header())})
    for name, meant in (
        ("hf:org/model/model-q8_0.gguf", "hf:org/model/Model-Q8_0.gguf"),
        ("hf:org/model/blob/main/Model-Q8_0.gguf", "hf:org/model/Model-Q8_0.gguf"),
    ):
        with pytest.raises(ModelNotFoundError, match=f"; write {meant}$"):
            find_remote(name)
    for name in (f"hf:{hub.url}/org/model", "hf:org/model/", "hf://org/model"):
        with pytest.raises(UsageError, match=r"; this one is hf:org/model$"):
            find_remote(name)


def test_repositories_of_parts_and_adapters(hub: HubServer) -> None:
    hub.add_repo("org/parts", {"m.gguf.part1of2": b"GGUF", "m.gguf.part2of2": b"-"})
    config = b'{"base_model_name_or_path": "meta/Base-1B"}'
    hub.add_repo("org/lora", {"adapter_config.json": config, "adapter_model.safetensors": b"-"})
    hub.add_repo("org/bare", {"model.safetensors": b"-"})
    for name in ("hf:org/parts", "hf:org/parts/m.gguf.part1of2"):
        with pytest.raises(
            ModelError, match=r"2 parts; join them: cat m\.gguf\.part1of2 m\.gguf\.part2of2 > m\.gguf"
        ):
            find_remote(name)
    with pytest.raises(ModelError, match=r"an adapter of meta/Base-1B, .* the model is hf:meta/Base-1B"):
        find_remote("hf:org/lora")
    with pytest.raises(ModelError, match=r"no config\.json"):
        find_remote("hf:org/bare")


def test_repositories_of_an_owner(hub: HubServer) -> None:
    for name in ("org/Model-8B", "org/Model-70B", "else/Model-1B"):
        hub.add_repo(name, {"README.md": b"-"})
    assert set(repositories_of("org", "Model")) == {"org/Model-8B", "org/Model-70B"}


@pytest.mark.parametrize(
    "name",
    ["hf:", "hf:org", "hf:org/../x", "hf:org/name:", "hf:/x", "hf:org/name:a/b", "https://host/", "http://"],
)
def test_malformed_names(name: str) -> None:
    with pytest.raises(UsageError):
        find_remote(name)


def test_a_dead_server(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MemfitError, match="cannot reach the hub"):
        find_model("hf:org/model")
    with pytest.raises(ModelError, match="cannot read"):
        find_model("http://127.0.0.1:9/model.gguf")


def test_in_a_subprocess_it_is_the_same(hub: HubServer, address: str) -> None:
    said: list[str] = []
    found = resolve(address, said.append)
    assert found.is_header_only and not found.is_checkpoint
    spec = found.read_spec()
    assert said == [f"reading the header of {address}"]
    assert (spec.source, spec.tensors) == (address, find_model(address).tensors)
    with pytest.raises(UsageError, match="a model on the hub is"):
        resolve("hf:nonsense")
    with pytest.raises(ModelNotFoundError, match="nothing is at"):
        resolve(f"{hub.url}/files/none.gguf")
    broken = hub.add_file("broken.gguf", b"GGUF" + bytes(400))
    with pytest.raises(ModelError, match="version"):
        resolve(broken)
