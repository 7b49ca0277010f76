"""NaN of one pass stays out of all others: a model whose token 1, which warm-ups compute, has no numbers."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import memfit
from memfit.engines.requests import Request, RequestResult, Sampling
from memfit.errors import EngineError

pytestmark = pytest.mark.engine

_GREEDY = Sampling(temperature=0, max_tokens=10)
# From some 64 tokens on, the engine masks what a sequence may not see by multiplying with 0.
_WORDS = "".join(f" w{number}" for number in range(80))
_PROMPTS = tuple(f" w{number}{_WORDS}" for number in range(200, 202))
_MANY = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The same random llama with and without numbers in the row of its beginning-of-text token."""
    import numpy
    from gguf import GGUFReader, GGUFWriter

    folder = tmp_path_factory.mktemp("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "benchmarks"))
        sizes = {"layers": 2, "width": 256, "feed_forward": 512, "heads": 4, "kv_heads": 2}
        base = folder / "base.gguf"
        importlib.import_module("synthetic").write_dense(
            base, **sizes, vocabulary=2000, kind="Q8_0", values="random", context=2048
        )

    def write(path: Path, number: float | None) -> Path:
        reader, writer = GGUFReader(base), GGUFWriter(path, "llama")
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":
                element = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(name, field.contents(), field.types[0], element)
        writer.add_add_bos_token(False)
        for tensor in reader.tensors:
            data = numpy.array(tensor.data)
            if number is not None and tensor.name == "token_embd.weight":
                scales = data[1].reshape(-1, 34)[:, :2]  # of Q8_0's blocks: a half float, then 32 bytes
                scales[:] = numpy.frombuffer(numpy.float16(number).tobytes(), numpy.uint8)
            writer.add_tensor(tensor.name, data, raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    yield write(folder / "sane.gguf", None), write(folder / "nan.gguf", float("nan"))
    for path in folder.glob("*.gguf"):
        path.unlink()


def _plan(model: Path, **workload: Any) -> memfit.Plan:
    wanted = memfit.Workload(**{"context": 2048, "repack": "off", **workload})
    return memfit.plan(str(model), workload=wanted)


def test_what_a_warm_up_or_another_request_left_is_not_seen(models: tuple[Path, Path]) -> None:
    sane, ill = models
    with memfit.load(_plan(sane)) as session:
        texts = [session.generate(prompt, _GREEDY).text for prompt in _PROMPTS]
    assert all(text.strip() for text in texts)
    with memfit.load(_plan(ill)) as session:
        assert session.generate(_PROMPTS[0], _GREEDY).text == texts[0]  # after the warm-up
        for beginning in ("<s>", _PROMPTS[0] + "<s>"):  # of nothing, and of what the cache holds
            with pytest.raises(EngineError, match=r"computes NaN, which is no number, for this prompt"):
                session.generate(beginning + _WORDS, _GREEDY)
            assert session.generate(_PROMPTS[1], _GREEDY).text == texts[1]
            assert session.generate(_PROMPTS[0], _GREEDY).text == texts[0]
        session.measure(80, 4)
        assert session.generate(_PROMPTS[1], _GREEDY).text == texts[1]


@pytest.mark.parametrize("unified", [True, False], ids=["common cache", "a part each"])
def test_the_requests_beside_it_are_answered(models: tuple[Path, Path], unified: bool) -> None:
    found: list[dict[int, str]] = []
    for model in models:
        with memfit.load(_plan(model, parallel=4, kv_unified=unified)) as session:
            batch = session.open()
            for number in range(_MANY):
                prompt = f"<s> w{_WORDS}{_WORDS}" if number == 3 else f" w{200 + number}{_WORDS}"
                batch.add(Request(number=number, prompt=prompt, sampling=_GREEDY))
            batch.end()
            answers = [event for event in batch.events() if isinstance(event, RequestResult)]
        found.append(
            {one.number: one.completion.text if one.completion else str(one.error) for one in answers}
        )
    sane, ill = found
    assert sane.keys() == ill.keys() == set(range(_MANY))
    assert "NaN" in ill.pop(3)
    wrong = {number: text for number, text in ill.items() if text != sane[number]}
    # Who computed in the same pass and the same cache has seen it; nobody is answered with it.
    assert all("NaN" in text for text in wrong.values())
    assert len(wrong) <= (2 if unified else 0)
    assert all(sane[number] == ill[number] for number in range(4, _MANY))  # which came later
