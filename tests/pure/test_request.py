"""What a user may ask for: every limit, and that nonsense names the option it came from."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import make_device, make_gpu, make_machine, make_ram
from hypothesis import given
from hypothesis import strategies as st

from memfit.engines.requests import Sampling
from memfit.errors import UsageError
from memfit.memory.reserve import reserve_bytes
from memfit.planner.request import Budget, Workload, require_devices
from memfit.units import GIB, MIB


@pytest.mark.parametrize(
    ("field", "option", "least", "most"),
    [
        ("context", "--ctx", 1, 2**31 - 1),
        ("parallel", "--parallel", 1, 256),
        ("threads", "--threads", 1, 512),
        ("prompt_tokens", "--prompt-tokens", 1, 2**31 - 1),
        ("generated_tokens", "--gen-tokens", 1, 2**31 - 1),
        ("depth", "--depth", 0, 2**31 - 1),
    ],
)
def test_the_workloads_limits(field: str, option: str, least: int, most: int) -> None:
    for allowed in (least, most):
        assert getattr(Workload(**{field: allowed}), field) == allowed
    for refused in (least - 1, most + 1, -(10**30), 10**30):
        with pytest.raises(
            UsageError, match=f"^{option} is {refused}; it must be between {least} and {most}"
        ):
            Workload(**{field: refused})


@pytest.mark.parametrize("kv_type", ["auto", "f16", "q8_0", "q4_0"])
@pytest.mark.parametrize("repack", ["auto", "on", "off"])
def test_the_workloads_words(kv_type: str, repack: str) -> None:
    workload = Workload(kv_type=kv_type, repack=repack)
    assert (workload.kv_type, workload.repack) == (kv_type, repack)


@pytest.mark.parametrize("word", ["", "F16", "q5_0", "f16 ", "none"])
def test_other_words_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match=r"--kv-type is .*auto, f16, q8_0, q4_0"):
        Workload(kv_type=word)
    with pytest.raises(UsageError, match=r"--repack is .*auto, on or off"):
        Workload(repack=word)


def test_the_defaults() -> None:
    workload = Workload()
    assert (workload.context, workload.threads, workload.depth) == (None, None, None)
    assert (workload.parallel, workload.kv_type, workload.repack) == (1, "auto", "auto")
    budget = Budget()
    assert (budget.ram, budget.vram, budget.rpc, budget.disk) == (None, None, {}, True)


@pytest.mark.parametrize(
    ("ram", "size_bytes"),
    [("8GiB", 8_589_934_592), ("11.5GB", 11_500_000_000), (1024, 1024), ("90%", 9_000), ("100%", 10_000)],
)
def test_a_budget_in_bytes(ram: str | int, size_bytes: int) -> None:
    assert Budget(ram=ram).ram_bytes(make_ram(10_000)) == size_bytes


def test_no_budget_leaves_the_reserve() -> None:
    assert Budget().ram_bytes(make_ram(16 * GIB)) == 16 * GIB - 536_870_912
    assert Budget().ram_bytes(make_ram(4 * GIB, 4 * GIB)) == 4 * GIB - 268_435_456  # a sixteenth
    assert Budget().ram_bytes(make_ram(700 * MIB, 700 * MIB)) == 700 * MIB - 45_875_200
    assert Budget().ram_bytes(make_ram(0)) == 0  # nothing fits, which the plan then says


def test_the_reserve_grows_without_a_step_and_leaves_half_of_what_is_free() -> None:
    assert reserve_bytes(8 * GIB, 8 * GIB) == reserve_bytes(64 * GIB, 8 * GIB) == 512 * MIB
    assert 512 * MIB - reserve_bytes(8 * GIB - 16, 8 * GIB) == 1
    assert reserve_bytes(64 * GIB, 400 * MIB) == 200 * MIB
    assert reserve_bytes(64 * GIB, 1) == 0


@pytest.mark.parametrize("ram", ["", "lots", "0", 0, -1, "101%", "5Gx", 2**63, True])
def test_a_nonsense_budget_names_its_option(ram: Any) -> None:
    with pytest.raises(UsageError, match=r"^--ram: ") as caught:
        Budget(ram=ram).ram_bytes(make_ram(GIB))
    assert str(ram) in str(caught.value)


@pytest.mark.parametrize(
    ("budget", "option"),
    [
        ({"ram": ".5GiB"}, "--ram: '.5GiB' is not a size; write 0.5GiB"),
        ({"vram": "11,5G"}, "--vram: '11,5G' is not a size; write 11.5G"),
        ({"vram": {0: 0, 1: "1e9"}}, "--vram 1: '1e9' is not a size; write 1000000000"),
        ({"rpc": {"host:1": "101%"}}, "--rpc host:1: '101%' is more than"),
    ],
)
def test_what_is_no_size_anywhere_is_refused_before_a_machine_is_asked(budget: Any, option: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget(**budget)
    assert str(caught.value).startswith(option)


# --- GPUs and remote devices ---


def test_no_gpu_budget_leaves_the_reserve_of_each() -> None:
    assert Budget().gpu_bytes(make_gpu(0, 6 * GIB, total_bytes=24 * GIB)) == 6 * GIB - 536_870_912
    assert Budget().gpu_bytes(make_gpu(0, 6 * GIB)) == 6 * GIB - 402_653_184


def test_a_gpu_that_is_full_is_not_used_unless_it_is_asked_for() -> None:
    device = make_device("gpu0", free_bytes=310 * MIB, overhead_bytes=300 * MIB)
    assert Budget().device_bytes(device) == 0
    with pytest.raises(UsageError, match=r"gpu0: the budget is 250\.00 MiB, and its runtime alone takes"):
        Budget(vram="250MiB").device_bytes(device)


@pytest.mark.parametrize(("vram", "size_bytes"), [("8GiB", 8_589_934_592), (1024, 1024), ("90%", 9_000)])
def test_one_size_is_for_every_gpu(vram: str | int, size_bytes: int) -> None:
    assert [Budget(vram=vram).gpu_bytes(make_gpu(number, 10_000)) for number in (0, 7)] == [size_bytes] * 2


def test_a_gpu_that_is_not_named_is_not_used() -> None:
    budget = Budget(vram={0: "50%", 2: 300, 3: 0, "CUDA4": 7})
    assert [budget.gpu_bytes(make_gpu(number, 10_000)) for number in range(5)] == [5_000, 0, 300, 0, 7]


def test_a_gpu_is_named_by_its_number_or_by_its_name() -> None:
    machine = make_machine(gpus=(make_gpu(0), make_gpu(1)))
    require_devices(Budget(vram={"CUDA1": "1GiB", 0: "1GiB"}), machine, is_dummy=False)
    with pytest.raises(UsageError, match=r"--vram CUDA1 and 1 are one GPU; name it once"):
        require_devices(Budget(vram={"CUDA1": "1GiB", 1: "1GiB"}), machine, is_dummy=False)
    with pytest.raises(UsageError, match=r"--vram Vulkan0: there is no GPU Vulkan0"):
        require_devices(Budget(vram={"Vulkan0": "1GiB"}), machine, is_dummy=False)


@pytest.mark.parametrize("size", ["", "lots", "0", 0, -1, "101%"])
def test_a_nonsense_gpu_budget_names_its_option(size: Any) -> None:
    with pytest.raises(UsageError, match=r"^--vram: ") as caught:
        Budget(vram=size).gpu_bytes(make_gpu(0, GIB))
    assert str(size) in str(caught.value)


@pytest.mark.parametrize("size", ["lots", "0", -1, "101%"])
def test_a_nonsense_budget_of_one_gpu_names_it(size: Any) -> None:
    with pytest.raises(UsageError, match=r"^--vram 2: "):
        Budget(vram={2: size}).gpu_bytes(make_gpu(2, GIB))


@pytest.mark.parametrize(("size", "size_bytes"), [(None, 10_000), ("25%", 2_500), (77, 77), ("1KiB", 1024)])
def test_a_remote_budget_is_what_is_lent_or_less(size: Any, size_bytes: int) -> None:
    assert Budget(rpc={"host:1": size}).device_bytes(make_device("host:1", 10_000)) == size_bytes


@pytest.mark.parametrize("size", ["", "lots", 0, "0 GiB", "101%"])
def test_a_nonsense_remote_budget_names_the_endpoint(size: Any) -> None:
    with pytest.raises(UsageError, match=r"^--rpc host:1: "):
        Budget(rpc={"host:1": size}).device_bytes(make_device("host:1", GIB))


@pytest.mark.parametrize("endpoint", ["host:1", "192.168.1.7:50052", "[::1]:65535", "a.b.example:80"])
def test_endpoints(endpoint: str) -> None:
    assert Budget(rpc={endpoint: None}).device_bytes(make_device(endpoint, 5)) == 5


@pytest.mark.parametrize(
    "endpoint",
    ["", "host", ":1", "host:", "host:0", "host:65536", "host:-1", "host:x", "host:1 ", "host:\u0661"],
)
def test_what_is_no_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(UsageError, match=r"^--rpc is .*; it must be HOST:PORT or HOST:PORT=SIZE$") as caught:
        Budget(rpc={endpoint: None})
    assert repr(endpoint) in str(caught.value)


@given(st.text(max_size=20))
def test_any_text_is_a_budget_or_a_usage_error(text: str) -> None:
    try:
        assert Budget(ram=text).ram_bytes(make_ram(GIB)) > 0
    except UsageError as error:
        assert str(error).startswith("--ram: ")


@pytest.mark.parametrize(
    ("field", "option", "allowed", "refused"),
    [
        ("max_tokens", "--max-tokens", [None, 1], [0, -1]),
        ("temperature", "--temperature", [0, 0.8, 100], [-0.1, 100.1, float("nan"), float("inf")]),
        ("top_k", "--top-k", [0, 40], [-1]),
        ("top_p", "--top-p", [0.01, 1], [0, -1, 1.01, float("nan")]),
        ("min_p", "--min-p", [0, 1], [-0.01, 1.01, float("nan")]),
        ("repeat_penalty", "--repeat-penalty", [0.1, 1, 100], [0, -1, 101, float("nan")]),
        ("seed", "--seed", [0, 2**32 - 1], [-1, 2**32]),
    ],
)
def test_the_samplings_limits(field: str, option: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        assert getattr(Sampling(**{field: value}), field) == value
    for value in refused:
        with pytest.raises(UsageError, match=f"^{option} is {value}; it must be "):
            Sampling(**{field: value})


def test_a_top_k_beyond_32_bits_is_refused() -> None:
    with pytest.raises(UsageError):
        Sampling(top_k=2**32 + 1)  # would be 1: greedy
