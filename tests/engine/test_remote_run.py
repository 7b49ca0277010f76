"""From a name on a hub to an answer: planned by the header, asked for, downloaded, run."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

import memfit
from conftest import run_memfit
from hub_server import HubServer, Sparse
from memfit.advise import advise, choices_of
from memfit.cli.advice_table import print_advice
from memfit.cli.render import console
from memfit.errors import ModelError

pytestmark = pytest.mark.engine

_NAME = "hf:org/SmolLM2-135M-GGUF"
_PROMPT = (
    "-p",
    "The capital of France is",
    "--raw",
    "--temperature",
    "0",
    "--max-tokens",
    "4",
    "--ctx",
    "128",
)


@pytest.fixture
def repository(hub: HubServer, demo: str) -> str:
    hub.add_repo("org/SmolLM2-135M-GGUF", {"SmolLM2-135M-Q4_1.gguf": Path(demo), "README.md": b"-"})
    return _NAME


def test_planned_by_its_header_it_is_the_same(repository: str, hub: HubServer, demo: str) -> None:
    remote = run_memfit("plan", repository, "--json")
    assert remote.code == 0, remote.err
    here = run_memfit("plan", demo, "--json").json
    for there, mine in zip(remote.json["tiers"], here["tiers"], strict=True):
        for kind in ("weights_bytes", "kv_cache_bytes", "compute_bytes"):
            assert there[kind] == mine[kind]
        assert abs(there["overhead_bytes"] - mine["overhead_bytes"]) < 1 << 20
    assert sum(size for path, size in hub.bytes_sent.items() if path.endswith(".gguf")) < 4e6


def test_downloaded_only_when_the_user_agrees(repository: str, hub: HubServer) -> None:
    refused = run_memfit("run", repository, *_PROMPT, "--json")
    assert refused.code == 2 and "--yes" in refused.json["error"]["message"]
    assert "--yes" in refused.err and "memfit pull" in refused.err
    too_small = run_memfit("run", repository, *_PROMPT, "--yes", "--ram", "100MiB", "--json")
    assert too_small.code == 3  # before anything is downloaded
    assert too_small.json["fits"] is False and too_small.json["error"]["field"] == "RAM"
    assert run_memfit("models", "--json").json["models"] == []
    run = run_memfit("run", repository, *_PROMPT, "--yes", "--ram", "400MiB", "--json")
    assert run.code == 0, run.err
    assert run.json["text"].strip().startswith("Paris")
    assert run.json["within_budget"] is True
    (tier,) = run.json["measured"]["tiers"]
    assert abs(tier["error_bytes"]) <= 16 << 20  # what asked the network is not in it
    sent = sum(hub.bytes_sent.values())
    again = run_memfit("run", repository, *_PROMPT, "--json")
    assert again.json["text"] == run.json["text"]
    assert sum(hub.bytes_sent.values()) - sent < 100_000


def test_without_a_network_what_is_here_runs(repository: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_memfit("pull", repository).code == 0
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run_memfit("run", repository, *_PROMPT, "--json").json["text"].strip().startswith("Paris")
    assert run_memfit("plan", "hf:org/other").code == 4


def test_a_header_alone_is_never_loaded(repository: str) -> None:
    plan = memfit.plan(repository)
    with pytest.raises(ModelError, match=f"memfit pull {repository}"):
        memfit.load(plan)


def test_quantizations_are_compared(hub: HubServer, demo: str) -> None:
    whole = Path(demo).read_bytes()
    header = Sparse(prefix=whole[: 4 << 20], size_bytes=len(whole))
    files = {"m-135M-Q4_1.gguf": header, "m-135M-Q8_0.gguf": header, "broken-Q2_K.gguf": b"no model"}
    hub.add_repo("org/m-135M-GGUF", files)
    hub.add_repo("org/m-70M-GGUF", {"README.md": b"-"})
    choices = choices_of("hf:org/m-135M-GGUF")
    assert choices is not None and choices_of(demo) is None
    advice = advise(choices, budget=memfit.Budget(ram="400MiB"))
    assert advice is not None
    assert [one.label for one in advice.options] == ["Q4_1", "Q8_0", "Q2_K"]
    assert advice.recommended.label == "Q8_0"  # the least loss of two that are fast enough
    assert advice.options[2].plan is None and "GGUF" in str(advice.options[2].problem)
    assert {one.change for one in advice.what_ifs} >= {"--ctx 2048", "--ram 800MiB", "--kv-type q8_0"}
    assert advice.smaller_models == ("hf:org/m-70M-GGUF",)
    document = run_memfit("plan", "hf:org/m-135M-GGUF", "--ram", "400MiB", "--json").json
    assert document["recommended"] == "hf:org/m-135M-GGUF/m-135M-Q8_0.gguf"
    assert document["fits"] is True and len(document["alternatives"]) == 3
    shown = io.StringIO()
    print_advice(advice, console(file=shown))
    assert "→  Q8_0" in shown.getvalue()


def test_what_loses_too_much_is_said_beside_a_smaller_model(hub: HubServer, demo: str) -> None:
    whole = Path(demo).read_bytes()
    header = Sparse(prefix=whole[: 4 << 20], size_bytes=len(whole))
    hub.add_repo("org/m-70B-GGUF", {"m-70B-IQ1_S.gguf": header, "m-70B-Q2_K.gguf": header})
    hub.add_repo("org/m-14B-GGUF", {"m-14B-Q4_K_M.gguf": b"no model"})
    hub.add_repo("org/m-8B-GGUF", {"m-8B-Q4_K_M.gguf": header})
    document = run_memfit("plan", "hf:org/m-70B-GGUF", "--ram", "400MiB", "--json").json
    assert document["recommended"] == "hf:org/m-70B-GGUF/m-70B-Q2_K.gguf"
    assert document["smaller_models"] == ["hf:org/m-14B-GGUF", "hf:org/m-8B-GGUF"]
    assert document["instead"]["model"] == "hf:org/m-8B-GGUF"
    assert [one["loss"]["basis"] for one in document["alternatives"]] == ["published"] * 2
    asked = run_memfit("run", "hf:org/m-70B-GGUF", *_PROMPT, "--ram", "400MiB")
    assert "Q2_K is expected to lose 0.45" in asked.err and "hf:org/m-8B-GGUF fits, loses 0.072" in asked.err


def test_of_several_models_none_is_taken_silently(hub: HubServer, demo: str) -> None:
    whole = Path(demo).read_bytes()
    header = Sparse(prefix=whole[: 4 << 20], size_bytes=len(whole))
    hub.add_repo("org/two", {"A-0.5B-Q4_K_M.gguf": header, "A-1.5B-Q4_K_M.gguf": header})
    both = ("hf:org/two/A-0.5B-Q4_K_M.gguf", "hf:org/two/A-1.5B-Q4_K_M.gguf")
    for name in ("hf:org/two", "hf:org/two:Q4_K_M"):
        run = run_memfit("run", name, *_PROMPT)
        assert run.code == 2 and all(one in run.err for one in both)
    assert run_memfit("plan", "hf:org/two:Q4_K_M").code == 2
    shown = run_memfit("plan", "hf:org/two", "--ram", "400MiB")  # a table is no silence
    assert shown.code == 0 and all(f"  {one.rpartition('/')[2]}  " in shown.out for one in both)


def test_a_checkpoint_is_planned_in_each_precision(hub: HubServer, tmp_path: Path) -> None:
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 128,
        "vocab_size": 1000,
        "max_position_embeddings": 512,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    here = run_memfit("plan", str(tmp_path), "--json")
    assert here.code == 0, here.err
    assert [row["precision"] for row in here.json["precisions"]] == ["fp32", "bf16", "int8", "nf4", "nf4-dq"]
    hub.add_repo(
        "org/absurd",
        {
            "config.json": b'{"model_type": "llama", "hidden_size": -1}',
            "a.safetensors": b"\2\0\0\0\0\0\0\0{}",
        },
    )
    absurd = run_memfit("plan", "hf:org/absurd")
    assert absurd.code == 4 and "hidden_size" in absurd.err
    assert run_memfit("run", str(tmp_path), "-p", "x").code == 4


def test_a_gated_vision_model_is_planned_for_a_t4_by_its_header(
    hub: HubServer, llama: Path, tmp_path: Path, benchmarks: None
) -> None:
    """Gemma-3-4b: what transformers reports, where it lies, and that bf16 is emulated there."""
    from header_only import write_header_only

    hub.tokens.add("hf_let_me_in")
    folder = write_header_only("gemma-3-4b-it", tmp_path / "gemma")
    hub.add_repo("google/gemma-3-4b-it", _files(folder, llama), gated=True)
    assert "HF_TOKEN" in run_memfit("plan", "hf:google/gemma-3-4b-it", "--machine", "colab-t4").err
    found = run_memfit(
        "plan", "hf:google/gemma-3-4b-it", "--machine", "colab-t4", "--json", HF_TOKEN="hf_let_me_in"
    )
    assert found.code == 0, found.err
    assert sum(hub.bytes_sent.values()) < 20e6
    rows = {row["precision"]: row for row in found.json["precisions"]}
    plans = found.json["plans"]
    assert rows["bf16"]["reported_bytes"]["4.57.1"] == 8_600_192_738
    assert rows["nf4"]["reported_bytes"]["4.57.1"] == 3_170_623_202
    for name, row in rows.items():
        vram, ram = plans[name]["tiers"]
        assert (vram["name"], plans[name]["fits"]) == ("gpu0", True)
        if name != "fp32":  # of which some layers lie in RAM
            assert vram["weights_bytes"] == row["resident_bytes"] and ram["weights_bytes"] == 0
        assert plans[name]["predicted"]["basis"] == "profile"
    assert found.err.count("gpu0 has no bf16 arithmetic") == 1
    assert "fp16 does not hold gemma3's activations" in found.err
    shown = run_memfit("plan", "hf:google/gemma-3-4b-it", "--machine", "colab-t4", HF_TOKEN="hf_let_me_in")
    assert "on colab-t4" in shown.out and "8,600,192,738 bytes (4.57.1)" in shown.out


def test_mistral_3_is_planned_for_a_t4_by_its_header(
    hub: HubServer, llama: Path, tmp_path: Path, benchmarks: None
) -> None:
    """13.5 B parameters of text and 0.4 of vision: bf16 is more than the T4 and its host have, NF4 is not."""
    from header_only import write_header_only

    folder = write_header_only("ministral-3-14b", tmp_path / "mistral")
    hub.add_repo("mistralai/Ministral-3-14B", _files(folder, llama))
    where = ("hf:mistralai/Ministral-3-14B", "--machine", "colab-t4", "--json")
    bf16 = run_memfit("plan", *where, "--load-in", "bf16", "--no-disk")
    assert bf16.code == 3, bf16.err
    assert 13.8e9 < bf16.json["model"]["parameters"] < 14.0e9
    assert "--load-in int8" in bf16.json["try"] or "--load-in nf4" in bf16.json["try"]
    nf4 = run_memfit("plan", *where, "--load-in", "nf4").json
    vram, ram = nf4["tiers"]
    assert nf4["fits"] and ram["weights_bytes"] == 0 and 8e9 < vram["weights_bytes"] < 11e9
    assert vram["kv_cache_bytes"] == 40 * 2 * 4096 * 8 * 128 * 2
    assert any("no bf16 arithmetic" in why for why in nf4["why"])
    saved = tmp_path / "plan.json"
    saved.write_text(json.dumps(nf4))
    assert run_memfit("run", "--plan", str(saved), "-p", "x").code == 2


def _files(folder: Path, tokenizer: Path) -> dict[str, bytes | Sparse]:
    """A repository of which only headers can be read, with a tokenizer of the right kind."""
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        file.seek(0)
        prefix = file.read(8 + length)
    small = {name: (tokenizer / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}
    return {
        "config.json": (folder / "config.json").read_bytes(),
        "model.safetensors": Sparse(prefix=prefix, size_bytes=weights.stat().st_size),
        **small,
    }


def test_a_checkpoint_is_planned_downloaded_and_run(
    hub: HubServer, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path.name: path for path in llama.iterdir()}
    hub.add_repo("org/tiny", {**files, "pytorch_model.bin": b"\x80\x04."})
    planned = memfit.plan("hf:org/tiny", load_in="bf16", workload=memfit.Workload(context=512))
    here = memfit.plan(str(llama), load_in="bf16", workload=memfit.Workload(context=512))
    assert planned.tiers[0].total_bytes == here.tiers[0].total_bytes
    weights = sum(size for path, size in hub.bytes_sent.items() if path.endswith(".safetensors"))
    assert weights < 1e6
    with pytest.raises(ModelError, match="memfit pull hf:org/tiny"):
        memfit.load(planned)
    options = ("--load-in", "bf16", *_PROMPT, "--json")
    refused = run_memfit("run", "hf:org/tiny", *options)
    assert refused.code == 2 and "--yes" in refused.err
    run = run_memfit("run", "hf:org/tiny", "--yes", *options)
    assert run.code == 0, run.err
    assert run.json["within_budget"] is True and not any(".bin" in path for path in hub.bytes_sent)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run_memfit("run", "hf:org/tiny", *options).json["text"] == run.json["text"]


def test_a_gated_checkpoint_says_how_to_be_let_in(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.tokens.add("hf_right")
    files = {"config.json": b"{}", "model.safetensors": b"\2\0\0\0\0\0\0\0{}"}
    hub.add_repo("org/gated", files, gated=True)
    refused = run_memfit("plan", "hf:org/gated", "--load-in", "nf4")
    assert refused.code == 4 and "accept its terms" in refused.err and "hf auth login" in refused.err
    token = tmp_path / "huggingface" / "token"  # where `hf auth login` puts it
    token.parent.mkdir(exist_ok=True)
    token.write_text("hf_right")
    assert "config" in run_memfit("plan", "hf:org/gated", "--load-in", "nf4").err
