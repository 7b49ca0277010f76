"""How a checkpoint is quantized already, as its config.json says it: GPTQ, AWQ, FP8 and others.

Field names are upstream's. What memfit cannot read is no error here, only a `problem`: its header can still
be looked at. Knows no tensors; stored_weights.py finds them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from memfit.errors import HeaderError
from memfit.headers.config_section import ConfigSection
from memfit.strict_json import shown

__all__ = ["Quantization", "read_quantization"]

_GROUP = 128  # where GPTQ and AWQ say nothing, in transformers


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """A quantization_config."""

    method: str  # upstream's name: "gptq"
    layout: str | None = None  # how weights are stored, a key of stored_weights.LAYOUTS; None: not read
    bits: int = 0  # of a weight
    group_size: int = 0  # columns that share a scale; 0: all of a row
    has_zeros: bool = False  # a zero point beside each scale
    is_ordered: bool = False  # act-order: each column names its group
    zero_offset: int = 0  # what is added to a stored zero point: 1 in GPTQ's first format
    is_uniform: bool = True  # False: single modules may differ in bits and group
    problem: str | None = None  # why memfit does not read it

    @property
    def name(self) -> str:
        """For people: "gptq 4-bit"."""
        return f"{self.method} {self.bits}-bit" if self.bits and self.layout != "float8" else self.method


def read_quantization(section: ConfigSection) -> Quantization:
    """Raises HeaderError where a field is of another type or absurd."""
    method = section.text("quant_method", "unknown")
    reader = _READERS.get(method)
    if reader is None:
        known = ", ".join(_READERS)
        return Quantization(method=method, problem=f"memfit reads {known}, not {shown(method)}")
    return reader(section)


def _gptq(section: ConfigSection) -> Quantization:
    form = section.text("checkpoint_format", "gptq").lower()
    bits = section.count("bits", high=32)
    problem = None
    if form not in ("gptq", "gptq_v2"):
        problem = f"checkpoint_format {shown(form)}: memfit reads gptq and gptq_v2"
    elif bits not in (2, 3, 4, 8):
        problem = f"{bits} bits: GPTQ is read with 2, 3, 4 and 8"
    elif section.text("pack_dtype", "int32") != "int32":
        problem = "pack_dtype: memfit reads int32"
    return Quantization(
        method="gptq",
        layout="gptq",
        bits=bits,
        group_size=_group_size(section, default=_GROUP),
        has_zeros=not section.flag("sym", True),
        is_ordered=section.flag("desc_act"),
        zero_offset=int(form == "gptq"),
        is_uniform=not section.has("dynamic"),
        problem=problem,
    )


def _awq(section: ConfigSection) -> Quantization:
    version = section.text("version", section.text("format", "gemm")).lower()
    bits = section.count("bits", section.count("w_bit", 4), high=32)
    problem = None
    if version != "gemm":
        problem = f"version {shown(version)}: memfit reads AWQ's gemm"
    elif bits != 4:
        problem = f"{bits} bits: AWQ is read with 4"
    elif not section.flag("zero_point", True):
        problem = "zero_point false: AWQ is read with zero points"
    key = "group_size" if section.has("group_size") else "q_group_size"
    group = _group_size(section, key, _GROUP)
    return Quantization(method="awq", layout="awq", bits=4, group_size=group, has_zeros=True, problem=problem)


def _compressed_tensors(section: ConfigSection) -> Quantization:
    """All groups of modules must be quantized alike; which modules are, the tensors say."""
    method = "compressed-tensors"
    form = section.text("format", "unknown")
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        section.refuse("config_groups", f"got {shown(groups)}, needed an object with groups")
    schemes = []
    for name, group in groups.items():
        weights = group.get("weights") if isinstance(group, dict) else None
        schemes.append(ConfigSection(section.path, f"config_groups.{name}.weights", weights, {}))
    if len({repr(sorted(one.values.items(), key=str)) for one in schemes}) > 1:
        return Quantization(method=method, problem="its groups of modules are quantized in several ways")
    (weights, *_) = schemes
    bits, kind = weights.count("num_bits", high=32), weights.text("type", "int")
    strategy = weights.text("strategy", "group" if weights.has("group_size") else "tensor")
    layout = _COMPRESSED.get((form, kind))
    problem = None
    if layout is None or bits not in _COMPRESSED_BITS[layout]:
        problem = f"format {shown(form)} with {kind} of {bits} bits is not read"
    elif strategy not in ("tensor", "channel", "group", "block"):
        problem = f"strategy {shown(strategy)}: memfit reads tensor, channel, group and block"
    order = weights.get("actorder")
    return Quantization(
        method=method,
        layout=layout,
        bits=bits,
        group_size=_group_size(weights) if strategy == "group" else 0,
        has_zeros=not weights.flag("symmetric", True),
        is_ordered=order is True or order == "group",  # "weight" and "static" leave the columns in order
        problem=problem,
    )


# What compressed-tensors calls format, and the type of its weights → our layout and its bits.
_COMPRESSED = {
    ("pack-quantized", "int"): "packed",
    ("int-quantized", "int"): "int8",
    ("naive-quantized", "int"): "int8",
    ("naive-quantized", "float"): "float8",
    ("float-quantized", "float"): "float8",
}
_COMPRESSED_BITS = {"packed": (4, 8), "int8": (8,), "float8": (8,)}


def _float8(section: ConfigSection) -> Quantization:
    return Quantization(method=section.text("quant_method"), layout="float8", bits=8)


def _bitsandbytes(section: ConfigSection) -> Quantization:
    method = "bitsandbytes"
    if section.flag("load_in_8bit") or section.flag("_load_in_8bit"):
        return Quantization(method=method, layout="bnb-int8", bits=8)
    if section.flag("load_in_4bit") or section.flag("_load_in_4bit"):
        return Quantization(method=method, layout="bnb-4bit", bits=4)
    return Quantization(method=method, problem="neither load_in_4bit nor load_in_8bit")


def _mxfp4(section: ConfigSection) -> Quantization:
    return Quantization(method="mxfp4", layout="mxfp4", bits=4, group_size=32)


_READERS: dict[str, Callable[[ConfigSection], Quantization]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _float8,
    "fbgemm_fp8": _float8,
    "bitsandbytes": _bitsandbytes,
    "mxfp4": _mxfp4,
}


def _group_size(section: ConfigSection, key: str = "group_size", default: int | None = None) -> int:
    """0 for -1, which is a whole row."""
    value: Any = section.get(key)
    if value == -1:
        return 0
    try:
        return section.count(key, default)
    except HeaderError:
        section.refuse(key, f"got {shown(value)}, needed -1 or a number of columns")
