"""Machine profiles: the built-in ones are whole and plausible, and a bad file is refused by the field."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfit.errors import UsageError
from memfit.hardware.profile import Figure, Measured, profile_names, read_profile
from memfit.units import GIB, MIB
from thorough import times

_ROOT = Path(__file__).resolve().parents[2]
_FOLDER = _ROOT / "src/memfit/hardware/profiles"
_NAMES = {  # docs/contract.md
    *("rtx3060-12gb", "rtx4070-12gb", "rtx4080-16gb", "rtx3090-24gb", "rtx4090-24gb"),
    *("rtx5090-32gb", "rtx2060-6gb", "l4-24gb", "a100-80gb", "h100-80gb"),
    *("colab-t4", "laptop-16gb", "ryzen-hx370", "pi-8gb", "pi-16gb"),
}
_URL = "https://example.org/figure"
_GOOD: dict[str, Any] = {
    "name": "mine",
    "description": "under the desk",
    "note": "bought used",
    "cpu": {
        "model": "Some CPU",
        "architecture": "x86_64",
        "physical_cores": 8,
        "logical_cores": 16,
        "operations_per_second": {"value": None, "note": "never measured"},
    },
    "ram": {
        "total_bytes": 32 * GIB,
        "system_bytes": 3 * GIB,
        "type": None,
        "bandwidth_bytes_per_second": {"value": 51.2e9, "source": _URL, "note": "2 channels"},
    },
    "gpus": [
        {
            "name": "Some GPU",
            "total_bytes": 8 * GIB,
            "reserved_bytes": 512 * MIB,
            "compute_capability": "8.6",
            "bandwidth_bytes_per_second": {"value": 448000000000, "source": _URL},
            "operations_per_second": {"value": None, "note": "nobody says"},
            "link_bytes_per_second": {"value": 15.754e9, "source": "http://example.org"},
            "measured": [{"what": "llama 7B Q4_0 tg128", "tokens_per_second": 80.5, "source": _URL}],
        }
    ],
    "disk": None,
}


def _write(folder: Path, content: object) -> str:
    path = folder / "mine.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return str(path)


def _refusal(name: str) -> str:
    with pytest.raises(UsageError) as caught:
        read_profile(name)
    return str(caught.value)


def _changed(path: str, value: object) -> dict[str, Any]:
    """The good profile with one field set: `gpus.0.name`."""
    content = copy.deepcopy(_GOOD)
    *way, last = path.split(".")
    place: Any = content
    for key in way:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return content


# --- What a profile says ---


def test_every_field_of_a_file_arrives(tmp_path: Path) -> None:
    profile = read_profile(_write(tmp_path, _GOOD))
    assert (profile.name, profile.description, profile.disk) == ("mine", "under the desk", None)
    cpu = profile.cpu
    assert (cpu.model, cpu.architecture, cpu.physical_cores, cpu.logical_cores) == (
        "Some CPU",
        "x86_64",
        8,
        16,
    )
    assert cpu.operations_per_second is None
    assert profile.ram.bandwidth_bytes_per_second == Figure(value=51.2e9, source=_URL)
    (gpu,) = profile.gpus
    assert gpu.bandwidth_bytes_per_second == Figure(value=448e9, source=_URL)
    assert gpu.operations_per_second is None
    assert gpu.link_bytes_per_second == Figure(value=15.754e9, source="http://example.org")
    assert gpu.measured == (Measured(what="llama 7B Q4_0 tg128", tokens_per_second=80.5, source=_URL),)


def test_a_profile_becomes_a_machine(tmp_path: Path) -> None:
    twice = _changed("gpus", _GOOD["gpus"] * 2)
    machine = read_profile(_write(tmp_path, twice)).to_machine()
    assert machine.system == "profile mine"
    assert machine.cpu.logical_cores == 16
    assert machine.ram.available_bytes == 29 * GIB
    assert machine.ram.total_bytes == machine.ram.physical_bytes == 32 * GIB
    assert [gpu.index for gpu in machine.gpus] == [0, 1]
    first = machine.gpus[0]
    assert (first.total_bytes, first.used_bytes, first.free_bytes) == (
        8 * GIB,
        512 * MIB,
        8 * GIB - 512 * MIB,
    )
    assert (first.driver, first.cuda, first.link, first.others_bytes) == ("unknown", None, None, None)
    assert (machine.disks, machine.gpu_note, machine.cpu.instruction_sets) == ((), None, ())


def test_a_machine_of_ones_own_needs_no_sources(tmp_path: Path) -> None:
    bare = json.loads(json.dumps(_GOOD))
    for one in _objects(bare):
        one.pop("source", None)
        one.pop("note", None)
    profile = read_profile(_write(tmp_path, bare))
    assert profile.ram.bandwidth_bytes_per_second == Figure(value=51.2e9, source=None)
    assert profile.gpus[0].measured[0].source is None
    assert profile.cpu.operations_per_second is None
    assert profile.origin == "as stated in mine.json"
    assert read_profile(_write(tmp_path, _GOOD)).origin == "published figures, with their sources"


def test_a_built_in_machine_needs_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bare = _changed("ram.bandwidth_bytes_per_second", {"value": 51.2e9})
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/mine.json").write_text(json.dumps(bare))
    monkeypatch.setattr("memfit.hardware.profile.resources.files", lambda _: tmp_path)
    assert "ram.bandwidth_bytes_per_second.source is missing" in _refusal("mine")


# --- The built-in ones ---


def test_the_built_in_names_are_those_of_the_contract() -> None:
    assert set(profile_names()) == _NAMES
    assert {path.name for path in _FOLDER.iterdir()} == {f"{name}.json" for name in _NAMES}


@pytest.mark.parametrize("name", sorted(_NAMES))
def test_a_built_in_profile_is_called_what_its_file_is(name: str) -> None:
    profile = read_profile(name)
    assert profile.name == name
    assert profile == read_profile(str(_FOLDER / f"{name}.json"))  # the format is the user's
    assert 0 < profile.to_machine().ram.available_bytes < profile.ram.total_bytes


@pytest.mark.parametrize("name", sorted(_NAMES))
def test_an_unknown_figure_says_why(name: str) -> None:
    content = json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    for figure in _objects(content):
        if "value" in figure and figure["value"] is None:
            assert figure["note"]


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _objects(each)


@pytest.mark.parametrize("name", sorted(_NAMES))
def test_figures_and_published_results_agree(name: str) -> None:
    """A slip of a unit or a digit shows: nothing generates faster than its memory can be read.

    A llama 7B Q4_0 has 3.56 GiB, and 6.74e9 weights: too few for what data centers' cards could do. Prompts
    may pass the FP16 rate, since the engine multiplies 8-bit integers, at up to four times that rate.
    """
    for gpu in read_profile(name).gpus:
        bandwidth, operations = gpu.bandwidth_bytes_per_second, gpu.operations_per_second
        assert bandwidth is not None and operations is not None
        least_memory, least_operations = (
            (0.3, 0.1) if gpu.compute_capability in ("8.0", "9.0") else (0.5, 0.2)
        )
        for result in gpu.measured:
            if "tg128" in result.what:
                assert least_memory < result.tokens_per_second * 3.56 * GIB / bandwidth.value < 0.9, result
            else:
                assert least_operations < result.tokens_per_second * 2 * 6.74e9 / operations.value < 1.5, (
                    result
                )


# --- What is refused, and how it is said ---


@pytest.mark.parametrize("name", ["rtx3060", "", "../profile", "RTX3060-12GB", "a\0b", "profiles"])
def test_an_unknown_name_is_told_the_known_ones(name: str) -> None:
    message = _refusal(name)
    assert all(known in message for known in _NAMES)
    assert "\0" not in message


def test_a_path_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")  # must not wait for a writer
    for name in ("missing.json", "a\0.json"):
        assert "no such file" in _refusal(str(tmp_path / name))
    assert "it is a folder" in _refusal(str(tmp_path / "folder.json"))
    assert "it is no plain file" in _refusal(str(tmp_path / "pipe.json"))


def test_a_path_that_the_system_refuses(tmp_path: Path) -> None:
    assert "File name too long" in _refusal(str(tmp_path / ("x" * 5000 + ".json")))


_REFUSED = [
    ("name", "", 'name: got "", needed one line of text'),
    ("name", 7, "name: got 7, needed one line of text"),
    ("description", "a\nb", "description: got"),
    ("description", "x" * 1001, "description: got"),
    ("cpu", None, "cpu: got null, needed an object"),
    ("cpu.cores", 4, "cpu.cores is not a field; here are architecture, logical_cores, model,"),
    ("cpu.physical_cores", 0, "cpu.physical_cores: got 0, needed a whole number from 1 to 4096"),
    ("cpu.physical_cores", True, "cpu.physical_cores: got true"),
    ("cpu.physical_cores", 8.0, "cpu.physical_cores: got 8.0"),
    ("cpu.logical_cores", 4, "cpu.logical_cores: got 4, needed a whole number from 8 to 4096"),
    ("cpu.operations_per_second", 5e11, "cpu.operations_per_second: got 500000000000.0, needed an object"),
    ("cpu.operations_per_second", None, "cpu.operations_per_second: got null, needed an object"),
    ("cpu.operations_per_second", {}, "cpu.operations_per_second.value is missing"),
    ("cpu.operations_per_second", {"value": 1, "sauce": _URL}, "cpu.operations_per_second.sauce is not a"),
    ("cpu.operations_per_second", {"value": None, "source": _URL}, "operations_per_second.source is not a"),
    ("ram.total_bytes", "32GiB", 'ram.total_bytes: got "32GiB", needed a whole number'),
    ("ram.total_bytes", 2**50 + 1, "ram.total_bytes: got 1125899906842625"),
    ("ram.total_bytes", 10**4000, "ram.total_bytes: got a number of more than 30 digits"),
    ("ram.system_bytes", 32 * GIB + 1, "ram.system_bytes: got 34359738369, needed a whole number from 0 to"),
    ("ram.type", "", 'ram.type: got ""'),
    ("ram.note", 3, "ram.note: got 3"),
    ("gpus", {}, "gpus: got an object, needed a list of at most 64"),
    ("gpus", [{}] * 65, "gpus: got a list"),
    ("gpus", [[]], "gpus[0]: got an empty list, needed an object"),
    ("gpus.0.memory", 8, "gpus[0].memory is not a field"),
    ("gpus.0.reserved_bytes", -1, "gpus[0].reserved_bytes: got -1"),
    ("gpus.0.compute_capability", 8.6, "gpus[0].compute_capability: got 8.6"),
    ("gpus.0.bandwidth_bytes_per_second.value", 0, "gpus[0].bandwidth_bytes_per_second.value: got 0, needed"),
    ("gpus.0.bandwidth_bytes_per_second.value", -1.5, "gpus[0].bandwidth_bytes_per_second.value: got -1.5"),
    ("gpus.0.bandwidth_bytes_per_second.value", True, "gpus[0].bandwidth_bytes_per_second.value: got true"),
    ("gpus.0.bandwidth_bytes_per_second.value", "1e9", 'gpus[0].bandwidth_bytes_per_second.value: got "1e9"'),
    ("gpus.0.bandwidth_bytes_per_second.value", 1e19, "gpus[0].bandwidth_bytes_per_second.value: got 1e+19"),
    (
        "gpus.0.bandwidth_bytes_per_second.value",
        10**400,
        "gpus[0].bandwidth_bytes_per_second.value: got a num",
    ),
    (
        "gpus.0.bandwidth_bytes_per_second.source",
        "NVIDIA",
        'gpus[0].bandwidth_bytes_per_second.source: got "N',
    ),
    ("gpus.0.measured.0.source", "https://a b", "gpus[0].measured[0].source: got"),
    ("gpus.0.measured.0.tokens_per_second", None, "gpus[0].measured[0].tokens_per_second: got null"),
    ("gpus.0.measured.0.what", ["tg"], "gpus[0].measured[0].what: got a list"),
    ("disk", [], "disk: got an empty list, needed an object"),
    ("disk", {}, "disk.read_bytes_per_second is missing"),
    ("x\x1b[31m", 1, "x\N{REPLACEMENT CHARACTER}[31m is not a field"),
]


@pytest.mark.parametrize(("path", "value", "said"), _REFUSED, ids=[f"{each[0]!a}" for each in _REFUSED])
def test_a_bad_field_is_named(tmp_path: Path, path: str, value: object, said: str) -> None:
    message = _refusal(_write(tmp_path, _changed(path, value)))
    assert said in message
    assert "mine.json" in message


@pytest.mark.parametrize("field", ["name", "cpu", "ram", "gpus", "disk"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    content = {key: value for key, value in _GOOD.items() if key != field}
    assert f": {field} is missing" in _refusal(_write(tmp_path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "Expecting value"),
        (b"[]", "the whole file: got an empty list, needed an object"),
        (b'{"name": "\xff"}', "byte 10 is not UTF-8"),
        (b'{"name": 1, "name": 2}', "'name' is there twice in one object"),
        (b'{"name": NaN}', "NaN is not a number that JSON has"),
        (b'{"name": -Infinity}', "-Infinity is not a number"),
        (b"[" * 500_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"name": ' + b"9" * 100_000 + b"}", "cannot read"),
        (b'{"name": "\\ud800"}', "is missing"),
        (b" " * (MIB + 1), "larger than 1.00 MiB"),
    ],
    ids=str,
)
def test_a_file_that_is_no_profile_at_all(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in _refusal(_write(tmp_path, content))


def test_a_number_too_large_for_a_float_is_not_infinite(tmp_path: Path) -> None:
    text = json.dumps(_GOOD).replace("448000000000", "1e999").encode()
    assert "gpus[0].bandwidth_bytes_per_second.value: got Infinity" in _refusal(_write(tmp_path, text))


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
_PLACES = sorted({path for path, _, _ in _REFUSED if path.isascii() and path.isprintable()})


@settings(max_examples=times(80, 800))
@given(path=st.sampled_from(_PLACES), value=_JSON)
def test_anything_anywhere_is_read_or_refused(tmp_path: Path, path: str, value: object) -> None:
    name = _write(tmp_path, _changed(path, value))
    try:
        read_profile(name).to_machine()
    except UsageError as error:
        assert str(error).isprintable()
