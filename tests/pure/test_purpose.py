"""Models that write no text are refused by what they are, before anything is started for them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    STRING,
    GgufFile,
    Value,
    number,
    text,
    tiny_metadata,
    tiny_model,
    tiny_tensors,
)

from memfit.cli.main import main
from memfit.engines.llamacpp.kv_cache import KvCache
from memfit.errors import HeaderError, ModelError
from memfit.headers.gguf_model import read_model
from memfit.headers.purpose import (
    embeds,
    has_cache,
    require_checkpoint_writes,
    require_known_purpose,
    require_writes,
)


def _of(architecture: str, **more: Value) -> GgufFile:
    values = tiny_metadata()
    moved = {
        key.replace("llama.", f"{architecture}.") if isinstance(key, str) else key: value
        for key, value in values.items()
    }
    moved["general.architecture"] = text(architecture)
    moved.update({f"{architecture}.{key.replace('__', '.')}": value for key, value in more.items()})
    return GgufFile(moved, tiny_tensors())


@pytest.mark.parametrize(
    ("file", "what"),
    [
        (_of("bert"), r"an encoder: it makes embeddings of texts \(bert\); memfit serve serves it"),
        (_of("nomic-bert"), "an encoder"),
        (_of("jina-bert-v2"), "an encoder"),
        (_of("t5encoder"), "an encoder of the T5 family"),
        (_of("gemma-embedding"), "an encoder"),
        (_of("t5"), r"an encoder-decoder: .* \(t5\)"),
        (_of("llada"), "a diffusion model"),
        (_of("dream"), "a diffusion model"),
        (_of("eagle3"), "a draft head"),
        (_of("wavtokenizer-dec"), "a part of a speech model"),
        (_of("qwen3", pooling_type=number(3)), r"an embedding model \(qwen3\)"),
        (_of("qwen3", pooling_type=number(4)), "a reranker"),
        (_of("llama", attention__causal=Value(BOOL, False)), "attention looks ahead"),
        (_of("llama", classifier__output_labels=Value(ARRAY, ["a"], STRING)), "a classifier"),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_what_writes_no_text_says_what_it_is(tmp_path: Path, file: GgufFile, what: str) -> None:
    spec = read_model(file.write(tmp_path / "model.gguf"))  # which inspect shows
    with pytest.raises(ModelError, match=what):
        require_writes(spec)


_OWN_CACHE = {"bert": False, "gemma-embedding": False, "qwen3": True, "llama-embed": True}


@pytest.mark.parametrize(
    "file",
    [
        _of("bert"),
        _of("gemma-embedding"),
        _of("llama-embed"),
        _of("qwen3", pooling_type=number(3)),
        _of("qwen3", pooling_type=number(4)),
        _of("llama", attention__causal=Value(BOOL, False)),
    ],
)
def test_what_embeds_is_known_for_that(tmp_path: Path, file: GgufFile) -> None:
    spec = read_model(file.write(tmp_path / "model.gguf"))
    require_known_purpose(spec)
    assert embeds(spec)
    assert has_cache(spec) == _OWN_CACHE.get(spec.architecture, True)


@pytest.mark.parametrize("architecture", ["t5", "t5encoder", "dream", "eagle3", "pockettts"])
def test_what_does_neither_is_refused_everywhere(tmp_path: Path, architecture: str) -> None:
    spec = read_model(_of(architecture).write(tmp_path / "model.gguf"))
    assert not embeds(spec)
    with pytest.raises(ModelError, match="write text, word by word"):
        require_known_purpose(spec)


@pytest.mark.parametrize(
    "file",
    [
        tiny_model(),
        _of("qwen3", pooling_type=number(0)),
        _of("llama", attention__causal=Value(BOOL, True)),
        _of("an-architecture-of-tomorrow"),
    ],
)
def test_what_may_write(tmp_path: Path, file: GgufFile) -> None:
    require_writes(read_model(file.write(tmp_path / "model.gguf")))


@pytest.mark.parametrize(
    ("metadata", "what"),
    [
        ({"adapter.type": text("lora"), "general.architecture": text("llama")}, "a LoRA adapter"),
        ({"general.architecture": text("controlvector")}, "a control vector"),
    ],
)
def test_what_goes_beside_a_model(tmp_path: Path, metadata: dict[Any, Any], what: str) -> None:
    with pytest.raises(HeaderError, match=f"{what}: a companion file"):
        read_model(GgufFile(metadata, tiny_tensors()).write(tmp_path / "x.gguf"))


_BATCH_LINE = json.dumps({"custom_id": "a", "prompt": "x"}) + "\n"


@pytest.mark.parametrize("command", ["plan", "run", "bench", "batch"])
@pytest.mark.parametrize("kind", ["gguf", "checkpoint"])
def test_every_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, kind: str
) -> None:
    if kind == "gguf":
        model = _of("t5").write(tmp_path / "t5.gguf")
    else:
        model = tmp_path / "t5"
        model.mkdir()
        config = {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "d_model": 32}
        (model / "config.json").write_text(json.dumps({**config, "is_encoder_decoder": True}))
        (model / "model.safetensors").write_bytes(b"")
    lines = tmp_path / "in.jsonl"
    lines.write_text(_BATCH_LINE)
    more = {
        "run": ["-p", "x"],
        "batch": ["--input", str(lines), "--output", str(tmp_path / "out.jsonl")],
    }.get(command, [])
    with pytest.raises(SystemExit) as end:
        main([command, str(model), *more])
    said = capsys.readouterr().err
    assert end.value.code == 4, said
    if kind == "gguf" or command != "batch":  # which is for GGUF files only, and says so
        assert "an encoder-decoder" in said
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("config", "what"),
    [
        (
            {"architectures": ["BertModel"], "model_type": "bert"},
            r"an encoder: .* \(BertModel\); a GGUF file of such a model works, with memfit serve",
        ),
        ({"architectures": ["BertForMaskedLM"]}, "an encoder"),
        ({"architectures": ["XLMRobertaForSequenceClassification"]}, "a classifier or reranker"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "a classifier or reranker"),
        ({"architectures": ["MistralModel"]}, "without the head that writes"),
        ({"architectures": ["T5EncoderModel"]}, "an encoder"),
        (
            {"architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True},
            "an encoder-decoder",
        ),
        ({"architectures": ["LLaDAModelLM"], "model_type": "llada"}, "a diffusion model"),
    ],
)
def test_checkpoints_that_write_no_text(tmp_path: Path, config: dict[str, Any], what: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=what):
        require_checkpoint_writes("here", path)


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": ["LlamaForCausalLM"], "is_encoder_decoder": False},
        {"architectures": ["GPT2LMHeadModel"]},
        {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3"},
        {"architectures": ["ChatGLMModel"], "auto_map": {"AutoModelForCausalLM": "x.Y"}},
        {"model_type": "llama"},
        {"architectures": None},
        {"architectures": [7], "auto_map": 3},
        [],
    ],
)
def test_checkpoints_that_may_write(tmp_path: Path, config: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    require_checkpoint_writes("here", path)
    path.write_bytes(b"\xff")
    require_checkpoint_writes("here", path)  # what else is wrong with it, its reader says


@pytest.mark.parametrize(("memory", "has_encoder"), [(None, False), (1, True)])
def test_the_worker_refuses_what_this_table_does_not_know(memory: int | None, has_encoder: bool) -> None:
    """Decoding with it would abort the process."""
    api = SimpleNamespace(llama_get_memory=lambda _: memory, llama_model_has_encoder=lambda _: has_encoder)
    with pytest.raises(ModelError, match="it is an encoder, or has one"):
        KvCache(api, 1, 2, unified=True)


def test_a_model_that_embeds_needs_no_cache() -> None:
    api = SimpleNamespace(llama_get_memory=lambda _: None, llama_model_has_encoder=lambda _: False)
    cache = KvCache(api, 1, 2, unified=True, embeds=True)
    cache.clear()
    assert not cache.is_there
