"""Shapes of models, invented and real: which tensors each has, and the type of every one of them.

Tables and arithmetic only; synthetic.py writes the files. Tensors and metadata are those that llama.cpp's
src/models/*.cpp ask for, types those that its src/llama-quant.cpp gives in a mix such as Q4_K_M.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import prod

from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What decides a model's size, in llama.cpp's terms; widths and lengths are numbers of elements."""

    architecture: str
    mix: str  # a row of _MIXES, or one type ("Q4_K") for every matrix
    layers: int
    width: int
    feed_forward: int  # of one expert where there are experts
    heads: int
    kv_heads: int
    vocabulary: int
    context: int = 8192
    head_size: int = 0  # 0: width / heads
    experts: int = 0
    experts_used: int = 0
    more: dict[str, int | float | str | list[int]] = field(
        default_factory=dict
    )  # metadata below the architecture

    @property
    def head(self) -> int:
        return self.head_size or self.width // self.heads

    @property
    def data_bytes(self) -> int:
        """All tensors; the header adds less than 1 MB."""
        return sum(tensor.size_bytes for tensor in tensors(self))


@dataclass(frozen=True, kw_only=True)
class Tensor:
    name: str
    dimensions: tuple[int, ...]  # slowest first, as in numpy
    type: str

    @property
    def size_bytes(self) -> int:
        per_block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.type]]
        return prod(self.dimensions) // per_block * block_bytes


def tensors(shape: Shape) -> list[Tensor]:
    """Every tensor of a model of this shape, in file order."""
    dimensions = {
        "token_embd.weight": (shape.vocabulary, shape.width),
        "output_norm.weight": (shape.width,),
        "output.weight": (shape.vocabulary, shape.width),
    }
    for layer in range(shape.layers):
        dimensions |= {f"blk.{layer}.{name}": sizes for name, sizes in _block(shape, layer).items()}
    return [
        Tensor(name=name, dimensions=sizes, type=_type(shape, name, sizes))
        for name, sizes in dimensions.items()
    ]


def _block(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    """The tensors of one layer."""
    if shape.architecture.startswith("qwen35"):
        return _qwen35_block(shape, layer)
    width, feed_forward, experts = shape.width, shape.feed_forward, shape.experts
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    attention = {
        "attn_norm.weight": (width,),
        "attn_q.weight": (queries, width),
        "attn_k.weight": (keys, width),
        "attn_v.weight": (keys, width),
        "attn_output.weight": (width, queries),
    }
    attention_biases = {"attn_q.bias": (queries,), "attn_k.bias": (keys,), "attn_v.bias": (keys,)}
    head_norms = {"attn_q_norm.weight": (shape.head,), "attn_k_norm.weight": (shape.head,)}
    dense = {
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (feed_forward, width),
        "ffn_up.weight": (feed_forward, width),
        "ffn_down.weight": (width, feed_forward),
    }
    sparse = {
        "ffn_gate_inp.weight": (experts, width),
        "ffn_gate_exps.weight": (experts, feed_forward, width),
        "ffn_up_exps.weight": (experts, feed_forward, width),
        "ffn_down_exps.weight": (experts, width, feed_forward),
    }
    sinks_and_biases = {
        "attn_sinks.weight": (shape.heads,),
        "post_attention_norm.weight": (width,),
        "attn_output.bias": (width,),
        "ffn_gate_inp.bias": (experts,),
        "ffn_gate_exps.bias": (experts, feed_forward),
        "ffn_up_exps.bias": (experts, feed_forward),
        "ffn_down_exps.bias": (experts, width),
    }
    return {
        "llama": attention | dense,
        "qwen2": attention | attention_biases | dense,
        "qwen3moe": attention | head_norms | {"ffn_norm.weight": (width,)} | sparse,
        "gpt-oss": attention | attention_biases | sparse | sinks_and_biases,
    }[shape.architecture]


def _qwen35_block(shape: Shape, layer: int) -> dict[str, tuple[int, ...]]:
    """Every fourth layer attends to all that came before; the others keep a state of one size."""
    width, feed_forward, experts = shape.width, shape.feed_forward, shape.experts
    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    state, inner = int(shape.more["ssm.state_size"]), int(shape.more["ssm.inner_size"])
    mixed = inner + 2 * state * int(shape.more["ssm.group_count"])
    ranks = int(shape.more["ssm.time_step_rank"])
    norms = {"attn_norm.weight": (width,), "post_attention_norm.weight": (width,)}
    attention = {
        "attn_q.weight": (2 * queries, width),  # with the gate of its output
        "attn_k.weight": (keys, width),
        "attn_v.weight": (keys, width),
        "attn_output.weight": (width, queries),
        "attn_q_norm.weight": (shape.head,),
        "attn_k_norm.weight": (shape.head,),
    }
    recurrent = {
        "attn_qkv.weight": (mixed, width),
        "attn_gate.weight": (inner, width),
        "ssm_conv1d.weight": (mixed, int(shape.more["ssm.conv_kernel"])),
        "ssm_dt.bias": (ranks,),
        "ssm_a": (ranks,),
        "ssm_beta.weight": (ranks, width),
        "ssm_alpha.weight": (ranks, width),
        "ssm_norm.weight": (state,),
        "ssm_out.weight": (width, inner),
    }
    dense = {
        "ffn_gate.weight": (feed_forward, width),
        "ffn_up.weight": (feed_forward, width),
        "ffn_down.weight": (width, feed_forward),
    }
    sparse = {
        "ffn_gate_inp.weight": (experts, width),
        "ffn_gate_exps.weight": (experts, feed_forward, width),
        "ffn_up_exps.weight": (experts, feed_forward, width),
        "ffn_down_exps.weight": (experts, width, feed_forward),
        "ffn_gate_inp_shexp.weight": (width,),
        "ffn_gate_shexp.weight": (feed_forward, width),
        "ffn_up_shexp.weight": (feed_forward, width),
        "ffn_down_shexp.weight": (width, feed_forward),
    }
    return norms | (attention if layer % 4 == 3 else recurrent) | (sparse if experts else dense)


# -- types ---------------------------------------------------------------------------------------------

Rule = Callable[[int, int], bool]  # (layer, layers) → does the layer get the better type?


def _more_bits(layer: int, layers: int) -> bool:
    """The first eighth, the last, and every third between (use_more_bits in llama-quant.cpp)."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _first_two(layer: int, _: int) -> bool:
    return layer < 2


def _first_eighth(layer: int, layers: int) -> bool:
    return layer < layers // 8


def _first_sixteenth(layer: int, layers: int) -> bool:
    return layer < layers // 16


def _always(_: int, __: int) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Mix:
    """A quantization's types: one for most matrices, and for those that suffer more, a better one."""

    file_type: int  # llama.cpp's number for it
    most: str
    output: str
    better: dict[str, tuple[Rule, str, str]] = field(default_factory=dict)  # part: (rule, where true, else)


_MIXES = {
    "Q2_K_S": Mix(
        file_type=21,
        most="Q2_K",
        output="Q6_K",
        better={
            "attn_v": (_always, "Q4_K", "Q4_K"),
            "ffn_down": (_first_eighth, "Q4_K", "Q2_K"),
        },
    ),
    "Q3_K_M": Mix(
        file_type=12,
        most="Q3_K",
        output="Q6_K",
        better={
            "attn_v": (_first_two, "Q5_K", "Q4_K"),
            "attn_output": (_always, "Q4_K", "Q4_K"),
            "ffn_down": (_first_sixteenth, "Q5_K", "Q4_K"),
        },
    ),
    "Q4_K_M": Mix(
        file_type=15,
        most="Q4_K",
        output="Q6_K",
        better={"attn_v": (_more_bits, "Q6_K", "Q4_K"), "ffn_down": (_more_bits, "Q6_K", "Q4_K")},
    ),
    "Q6_K": Mix(file_type=18, most="Q6_K", output="Q6_K"),
    "MXFP4_MOE": Mix(
        file_type=38,
        most="Q8_0",
        output="Q8_0",
        better={f"ffn_{part}_exps": (_always, "MXFP4", "MXFP4") for part in ("gate", "up", "down")},
    ),
}

# What a type with blocks of 256 becomes where rows are no multiple of that.
_SMALLER_BLOCKS = {"Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def file_type(shape: Shape) -> int | None:
    return _MIXES[shape.mix].file_type if shape.mix in _MIXES else None


def _type(shape: Shape, name: str, sizes: tuple[int, ...]) -> str:
    """Vectors, biases, the experts' router and convolutions stay in F32; the rest follows the mix."""
    if len(sizes) == 1 or name.endswith(".bias") or "ffn_gate_inp" in name or "ssm_conv1d" in name:
        return "F32"
    chosen = _mixed_type(shape, name) if shape.mix in _MIXES else shape.mix
    fits = sizes[-1] % GGML_QUANT_SIZES[GGMLQuantizationType[chosen]][0] == 0
    return chosen if fits else _SMALLER_BLOCKS[chosen]


def _mixed_type(shape: Shape, name: str) -> str:
    mix = _MIXES[shape.mix]
    if name == "output.weight":
        return mix.output
    if name == "token_embd.weight":
        return mix.most
    _, layer, part, _ = name.split(".")
    # Experts' matrices share their dense sisters' row.
    row = mix.better.get(part) or mix.better.get(part.removesuffix("_exps"))
    if row is None:
        return mix.most
    rule, better, otherwise = row
    chosen = better if rule(int(layer), shape.layers) else otherwise
    # In llama.cpp's eyes 80 layers with shared KV heads are "the 70B", whose small attn_v it spares.
    is_70b = shape.layers == 80 and shape.kv_heads < shape.heads and not shape.experts
    return "Q5_K" if is_70b and part == "attn_v" and chosen in ("Q3_K", "Q4_K") else chosen


# -- invented models, with weights ---------------------------------------------------------------------

TINY = Shape(  # 0.37 GB, 0.66 billion parameters
    architecture="llama",
    mix="Q4_K",
    layers=20,
    width=1536,
    feed_forward=4096,
    heads=12,
    kv_heads=12,
    vocabulary=32000,
)
SMALL = Shape(  # 0.62 GB, TinyLlama's shape
    architecture="llama",
    mix="Q4_K",
    layers=22,
    width=2048,
    feed_forward=5632,
    heads=32,
    kv_heads=4,
    vocabulary=32000,
)
BIG = Shape(  # 4.1 GB; 0.123 GB a layer, so that 24 make 3.1 GB and 46 make 5.8 GB
    architecture="llama",
    mix="Q4_K",
    layers=32,
    width=4096,
    feed_forward=14336,
    heads=32,
    kv_heads=8,
    vocabulary=32000,
)
HUGE = Shape(  # 30.1 GB, Llama-2-70B's layers; 0.48 GB each
    architecture="llama",
    mix="Q4_K",
    layers=62,
    width=8192,
    feed_forward=28672,
    heads=64,
    kv_heads=8,
    vocabulary=32000,
)
MOE = Shape(  # 0.51 GB
    architecture="qwen3moe",
    mix="Q4_K",
    layers=16,
    width=1024,
    feed_forward=512,
    heads=16,
    kv_heads=4,
    vocabulary=32000,
    experts=32,
    experts_used=4,
)
BIG_MOE = Shape(  # 4.3 GB, 0.34 GB a layer
    architecture="qwen3moe",
    mix="Q4_K",
    layers=12,
    width=4096,
    feed_forward=1536,
    heads=32,
    kv_heads=8,
    vocabulary=32000,
    experts=32,
    experts_used=4,
)
QWEN25_1B5 = Shape(  # 1.1 GB, Qwen2.5-1.5B's shape with a llama's tensors
    architecture="llama",
    mix="Q4_K_M",
    layers=28,
    width=1536,
    feed_forward=8960,
    heads=12,
    kv_heads=2,
    vocabulary=151936,
    context=32768,
)
QWEN25_0B5 = Shape(  # 0.5 GB, Qwen2.5-0.5B's shape with a llama's tensors: its rows are short for K-quants
    architecture="llama",
    mix="Q4_K_M",
    layers=24,
    width=896,
    feed_forward=4864,
    heads=14,
    kv_heads=2,
    vocabulary=151936,
    context=32768,
)
INVENTED = {
    "tiny": TINY,
    "small": SMALL,
    "big": BIG,
    "huge": HUGE,
    "0.5b": QWEN25_0B5,
    "1.5b": QWEN25_1B5,
    "moe": MOE,
    "big-moe": BIG_MOE,
}

# -- real models, headers only -------------------------------------------------------------------------

LLAMA2_70B = Shape(
    architecture="llama",
    mix="Q4_K_M",
    layers=80,
    width=8192,
    feed_forward=28672,
    heads=64,
    kv_heads=8,
    vocabulary=32000,
    context=4096,
)
QWEN25_72B = Shape(
    architecture="qwen2",
    mix="Q6_K",
    layers=80,
    width=8192,
    feed_forward=29568,
    heads=64,
    kv_heads=8,
    vocabulary=152064,
    context=32768,
    more={"rope.freq_base": 1e6},
)
QWEN3_30B_A3B = Shape(
    architecture="qwen3moe",
    mix="Q4_K_M",
    layers=48,
    width=2048,
    feed_forward=768,
    heads=32,
    kv_heads=4,
    head_size=128,
    vocabulary=151936,
    context=40960,
    experts=128,
    experts_used=8,
    more={"rope.freq_base": 1e6},
)
GPT_OSS_120B = Shape(
    architecture="gpt-oss",
    mix="MXFP4_MOE",
    layers=36,
    width=2880,
    feed_forward=2880,
    heads=64,
    kv_heads=8,
    head_size=64,
    vocabulary=201088,
    context=131072,
    experts=128,
    experts_used=4,
    more={
        "rope.freq_base": 150000.0,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096,
        "attention.sliding_window": 128,
    },
)
QWEN25_32B = replace(QWEN25_72B, mix="Q4_K_M", layers=64, width=5120, feed_forward=27648, heads=40)
QWEN36_35B_A3B = Shape(
    architecture="qwen35moe",
    mix="Q4_K_M",
    layers=40,
    width=2048,
    feed_forward=512,
    heads=16,
    kv_heads=2,
    head_size=256,
    vocabulary=248320,
    context=262144,
    experts=256,
    experts_used=8,
    more={
        "rope.freq_base": 1e7,
        "rope.dimension_count": 64,
        "rope.dimension_sections": [11, 11, 10, 0],
        "expert_feed_forward_length": 512,
        "expert_shared_feed_forward_length": 512,
        "full_attention_interval": 4,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 4096,
        "ssm.state_size": 128,
        "ssm.time_step_rank": 32,
        "ssm.group_count": 16,
    },
)
QWEN36_27B = Shape(
    architecture="qwen35",
    mix="Q4_K_M",
    layers=64,
    width=5120,
    feed_forward=17408,
    heads=24,
    kv_heads=4,
    head_size=256,
    vocabulary=248320,
    context=262144,
    more={
        "rope.freq_base": 1e7,
        "rope.dimension_count": 64,
        "rope.dimension_sections": [11, 11, 10, 0],
        "full_attention_interval": 4,
        "ssm.conv_kernel": 4,
        "ssm.inner_size": 6144,
        "ssm.state_size": 128,
        "ssm.time_step_rank": 48,
        "ssm.group_count": 16,
    },
)
LLAMA2_7B = replace(LLAMA2_70B, mix="Q4_0", layers=32, width=4096, feed_forward=11008, heads=32, kv_heads=32)
REAL = {
    "llama-2-70b-q3_k_m": replace(LLAMA2_70B, mix="Q3_K_M"),
    "llama-2-70b-q4_k_m": LLAMA2_70B,
    "llama-2-70b-q6_k": replace(LLAMA2_70B, mix="Q6_K"),
    "qwen2.5-72b-q6_k": QWEN25_72B,
    "qwen3-30b-a3b-q4_k_m": QWEN3_30B_A3B,
    "gpt-oss-120b": GPT_OSS_120B,
}
