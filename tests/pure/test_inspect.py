"""`memfit inspect`: exact JSON, safe text, and the exit codes."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from gguf_files import ARRAY, FLOAT32, INT32, STRING, Value, text, tiny_model

from memfit.cli.main import main

_ESCAPE = "\x1b]0;owned\x07\x1b[31m\u202e\x9b[bold]"


def _run(*arguments: object) -> int:
    """The exit code; a test reads what was printed through capsys."""
    with pytest.raises(SystemExit) as stop:
        main(["inspect", *map(str, arguments)])
    assert isinstance(stop.value.code, int)
    return stop.value.code


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    model = tiny_model(
        a__kept=Value(ARRAY, [1, -2], INT32),
        a__skipped=Value(ARRAY, ["x", "y"], STRING),
        a__infinite=Value(FLOAT32, float("inf")),
        a__hostile=text(_ESCAPE),
    )
    return model.write(tmp_path / "tiny.gguf")


def test_json_has_every_fact(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tiny, "--json") == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert json.loads(printed.out) == {
        "source": str(tiny),
        "paths": [str(tiny)],
        "architecture": "llama",
        "name": "Tiny",
        "quantization": "Q8_0",
        "file_bytes": tiny.stat().st_size,
        "weights_bytes": 204 + 256 + 8192,
        "parameters": 64 * 3 + 64 + 64 * 64,
        "context_length": 512,
        "vocabulary": 3,
        "layers": 2,
        "tensor_types": [
            {"type": "F16", "count": 1, "size_bytes": 8192},
            {"type": "F32", "count": 1, "size_bytes": 256},
            {"type": "Q8_0", "count": 1, "size_bytes": 204},
        ],
        "metadata": {
            "general.architecture": "llama",
            "general.name": "Tiny",
            "general.file_type": 7,
            "llama.block_count": 2,
            "llama.context_length": 512,
            "llama.embedding_length": 64,
            "tokenizer.ggml.tokens": {"array": "string", "length": 3},
            "a.kept": [1, -2],
            "a.skipped": {"array": "string", "length": 2},
            "a.infinite": "inf",
            "a.hostile": _ESCAPE,
        },
    }


def test_json_lists_tensors_when_asked(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tiny, "--json", "--tensors") == 0
    tensors = json.loads(capsys.readouterr().out)["tensors"]
    start = tensors[0]["offset_bytes"]
    assert tensors == [
        {
            "name": name,
            "shape": shape,
            "type": kind,
            "size_bytes": size,
            "offset_bytes": start + offset,
            "file_index": 0,
        }
        for name, shape, kind, size, offset in [
            ("token_embd.weight", [64, 3], "Q8_0", 204, 0),
            ("output_norm.weight", [64], "F32", 256, 224),
            ("blk.0.attn_q.weight", [64, 64], "F16", 8192, 480),
        ]
    ]


def test_text_has_the_facts_in_plain_lines(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tiny, "--tensors") == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert f"model {tiny}" in lines
    assert "quantization Q8_0 (15.90 bits per weight)" in lines  # 8652 bytes, 4352 parameters
    assert "context length 512 tokens" in lines
    assert "F16 1 8192 B" in lines
    assert "tokenizer.ggml.tokens 3 of string, not read" in lines
    assert any(line.startswith("blk.0.attn_q.weight 64 x 64 F16 8192 B") for line in lines)


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_in_the_file_commands_the_terminal(
    tmp_path: Path,
    terminal: bool,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")
    model = tiny_model(general__name=text(_ESCAPE), **{_ESCAPE: text(_ESCAPE)})
    assert _run(model.write(tmp_path / "hostile.gguf"), "--tensors") == 0
    shown = capsys.readouterr().out
    # Shown as text, rich's markup included; the only escapes are those of the table's headings.
    assert shown.count(r"\x1b]0;owned\x07\x1b[31m\u202e\x9b[bold]") == 4
    for forbidden in ("\x1b]", "\x1b[31m", "\x07", "\u202e", "\x9b"):
        assert forbidden not in shown
    if not terminal:
        assert "\x1b" not in shown


def test_a_long_value_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_model(tokenizer__chat_template=text("line\n" * 1000))
    path = model.write(tmp_path / "long.gguf")
    assert _run(path) == 0
    assert r"line\nline\n" in (shown := capsys.readouterr().out)
    assert "… (5,000 characters)" in shown
    assert max(map(len, shown.splitlines())) < 250


def test_a_missing_model_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path / "nothing.gguf") == 4
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("memfit: no such file:")


def test_a_damaged_model_is_exit_code_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"GGUF\x03\0\0\0")
    assert _run(path) == 4
    assert "counts: truncated" in capsys.readouterr().err


def test_json_needs_no_rich(tiny: Path) -> None:
    script = (
        "import sys; from memfit.cli.inspect import command; "
        f"command.main([{str(tiny)!r}, '--json'], standalone_mode=False); "
        "sys.exit('rich' in sys.modules or 'numpy' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == 0


# --- checkpoints ---

_CONFIG = {
    "model_type": "llama",
    "dtype": "bfloat16",
    "hidden_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "intermediate_size": 6,
    "vocab_size": 10,
    "max_position_embeddings": 32,
}


_SHARDS = ("model-0.safetensors", "model-1.safetensors")


def _checkpoint(folder: Path, *shards: dict[str, list[int]]) -> Path:
    """A folder with config.json, and shards of BF16 tensors of these shapes; F32 where they are norms."""
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    weight_map = {}
    for number, shapes in enumerate(shards):
        name = f"model-{number}.safetensors" if len(shards) > 1 else "model.safetensors"
        header, offset = {}, 0
        for tensor, shape in shapes.items():
            dtype, width = ("F32", 4) if "norm" in tensor else ("BF16", 2)
            end = offset + width * math.prod(shape)
            header[tensor] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
            weight_map[tensor], offset = name, end
        content = json.dumps(header).encode()
        (folder / name).write_bytes(struct.pack("<Q", len(content)) + content + bytes(offset))
    if len(shards) > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def test_a_checkpoint_in_two_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _checkpoint(tmp_path, {"embed": [10, 4], "norm": [4]}, {"up": [6, 4]})
    assert _run(folder, "--tensors", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    tensors = facts.pop("tensors")
    assert facts.pop("file_bytes") == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert facts == {
        "source": str(folder),
        "paths": [
            str(folder / name) for name in ("config.json", "model-0.safetensors", "model-1.safetensors")
        ],
        "architecture": "llama",
        "dtype": "bfloat16",
        "quantization": None,
        "parameters": 40 + 4 + 24,
        "weights_bytes": 80 + 16 + 48,
        "context_length": 32,
        "vocabulary": 10,
        "layers": 1,
        "experts": None,
        "tensor_types": [
            {"type": "BF16", "count": 2, "size_bytes": 128},
            {"type": "F32", "count": 1, "size_bytes": 16},
        ],
    }
    assert [(one["name"], one["shape"], one["type"], one["file_index"]) for one in tensors] == [
        ("embed", [10, 4], "BF16", 0),
        ("norm", [4], "F32", 0),
        ("up", [6, 4], "BF16", 1),
    ]
    assert _run(folder, "--tensors") == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["parameters", "68"] in lines and ["norm", "4", "F32", "16", "B", "model-0.safetensors"] in lines


def test_a_checkpoint_without_or_with_broken_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(_checkpoint(tmp_path)) == 0
    assert "no safetensors here" in capsys.readouterr().out
    _checkpoint(tmp_path, {"embed": [10, 4]})
    with (tmp_path / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    assert _run(tmp_path) == 4
    assert "truncated" in capsys.readouterr().err
