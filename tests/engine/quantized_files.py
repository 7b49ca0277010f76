"""Writes a checkpoint quantized, format by format after the published layouts, and what it stands for.

Weights are rounded to the nearest code; what matters is that files hold what upstream's libraries write, and
that the plain checkpoint beside it holds exactly the numbers that these codes stand for, in float32.
"""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

_LINEAR = ("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight")


def random_model(folder: Path, kind: str = "llama", **sizes: int) -> Path:
    """A small model in float32, "llama", "qwen3_moe" or "mixtral". All experts are chosen: which ones are
    would hang on roundings."""
    transformers, torch = importlib.import_module("transformers"), importlib.import_module("torch")
    torch.manual_seed(0)
    values: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "vocab_size": 512,
        "max_position_embeddings": 2048,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **sizes,
    }
    if kind == "llama":
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**values))
    elif kind == "qwen3_moe":
        values |= {"num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 256}
        model = transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**values))
    else:
        values |= {"num_local_experts": 4, "num_experts_per_tok": 4}
        model = transformers.MixtralForCausalLM(transformers.MixtralConfig(**values))
    model.save_pretrained(folder)
    return folder


def quantize(source: Path, folder: Path, form: str, **settings: Any) -> tuple[Path, Path]:
    """The checkpoint in `source` in a format, a key of FORMATS, and the plain one that it stands for."""
    load = importlib.import_module("safetensors.torch")
    config = json.loads((source / "config.json").read_text())
    stored: dict[str, Any] = {}
    plain: dict[str, Any] = {}
    for path in sorted(source.glob("*.safetensors")):
        for name, tensor in load.load_file(path).items():
            if name.endswith(_LINEAR) and tensor.dim() == 2:
                parts, weight = FORMATS[form](tensor, settings)
                base = name.removesuffix(".weight")
                stored |= {base + end: part.contiguous() for end, part in parts.items()}
                plain[name] = weight.contiguous()
            else:
                stored[name] = plain[name] = tensor.bfloat16().float()
    written = []
    for name, tensors, more in (("quantized", stored, _config_of(form, settings)), ("plain", plain, {})):
        where = folder / name
        where.mkdir(parents=True)
        for path in source.iterdir():
            if path.suffix != ".safetensors" and not path.name.endswith(".index.json"):
                shutil.copy(path, where)
        held = tensors
        if name == "quantized":
            real = plain.keys() - {key for key in stored if key in plain and stored[key] is not plain[key]}
            held = {key: one.bfloat16() if key in real else one for key, one in tensors.items()}
        load.save_file(held, where / "model.safetensors", metadata={"format": "pt"})
        dtype = {"dtype": "bfloat16"} if name == "quantized" else {"dtype": "float32"}
        (where / "config.json").write_text(json.dumps({**config, **dtype, **more}))
        written.append(where)
    return written[0], written[1]


def _config_of(form: str, settings: dict[str, Any]) -> dict[str, Any]:
    bits, group = settings.get("bits", 8 if "8" in form else 4), settings.get("group", 64)
    if form == "gptq":
        found = {
            "quant_method": "gptq",
            "bits": bits,
            "group_size": group,
            "desc_act": settings.get("ordered", False),
            "sym": not settings.get("zeros", False),
            "checkpoint_format": settings.get("format", "gptq"),
        }
    elif form == "awq":
        found = {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}
    elif form.startswith("bnb"):
        found = {"quant_method": "bitsandbytes", f"load_in_{form[-1]}bit": True}
    elif form == "fp8":
        found = {"quant_method": "fp8", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}
    else:
        strategy = settings.get("strategy", "group")
        weights = {
            "num_bits": bits,
            "type": "float" if form == "float8" else "int",
            "symmetric": not settings.get("zeros", False),
            "strategy": strategy,
            "group_size": group if strategy == "group" else None,
            "actorder": "group" if settings.get("ordered") else None,
        }
        names = {"packed": "pack-quantized", "int8": "int-quantized", "float8": "float-quantized"}
        found = {
            "quant_method": "compressed-tensors",
            "format": names[form],
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head"],
        }
    return {"quantization_config": found}


def _rounded(weight: Any, settings: dict[str, Any]) -> tuple[Any, Any, Any, Any, Any]:
    """Codes from 0 [rows, columns], scales and zeros [rows, groups], each column's group, what that is."""
    torch = importlib.import_module("torch")
    bits, group = settings.get("bits", 4), settings.get("group", 64)
    rows, columns = weight.shape
    if settings.get("strategy") in ("channel", "tensor") or group == -1:
        group = columns
    order = torch.arange(columns)
    if settings.get("ordered"):
        order = torch.randperm(columns, generator=torch.Generator().manual_seed(7))
    groups = torch.empty(columns, dtype=torch.long)
    groups[order] = torch.arange(columns) // group
    ordered = weight[:, order].view(rows, -1, group)
    most = 2**bits - 1
    if settings.get("zeros"):
        low, high = ordered.amin(2).clamp(max=0), ordered.amax(2).clamp(min=0)
        scales = ((high - low) / most).clamp(min=1e-6).half().float()
        zeros = (-low / scales).round().clamp(0, most)
        # GPTQ's first format stores one less than the zero point
        zeros = zeros.clamp(min=1)
    else:
        scales = (ordered.abs().amax(2) / (most // 2)).clamp(min=1e-6).half().float()
        zeros = torch.full_like(scales, 2 ** (bits - 1))
    wide, shifts = scales[:, groups], zeros[:, groups]
    codes = (weight / wide + shifts).round().clamp(0, most)
    return codes.int(), scales, zeros, groups, (codes - shifts) * wide


def _bits(codes: Any, bits: int) -> Any:
    """Codes of each row, the lowest bits first, as int32 words."""
    torch = importlib.import_module("torch")
    spread = (codes[:, :, None].long() >> torch.arange(bits)) & 1
    stream = spread.flatten(1)
    stream = torch.nn.functional.pad(stream, (0, -stream.shape[1] % 32))
    words = (stream.view(codes.shape[0], -1, 32) << torch.arange(32)).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _gptq(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    bits, offset = settings.get("bits", 4), int(settings.get("format", "gptq") == "gptq")
    codes, scales, zeros, groups, plain = _rounded(weight, settings)
    return {
        ".qweight": _bits(codes, bits).T,
        ".qzeros": _bits(zeros.int().T - offset, bits),
        ".scales": scales.T.half(),
        ".g_idx": groups.int(),
    }, plain


def _awq(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    codes, scales, zeros, _, plain = _rounded(weight, {**settings, "zeros": True})

    def pack(numbers: Any) -> Any:
        placed = numbers.view(numbers.shape[0], -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
        return _bits(placed.flatten(1), 4)

    return {
        ".qweight": pack(codes.T.contiguous()),
        ".qzeros": pack(zeros.int().T.contiguous()),
        ".scales": scales.T.half(),
    }, plain


def _packed(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    torch, bits = importlib.import_module("torch"), settings.get("bits", 4)
    codes, scales, zeros, groups, plain = _rounded(weight, settings)
    found = {
        ".weight_packed": _bits(codes, bits),
        ".weight_scale": scales.half(),
        ".weight_shape": torch.tensor(weight.shape),
    }
    if settings.get("zeros"):
        found[".weight_zero_point"] = _bits(zeros.int().T, bits).T
    if settings.get("ordered"):
        found[".weight_g_idx"] = groups.int()
    return found, plain


def _int8(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    torch = importlib.import_module("torch")
    codes, scales, _, _, plain = _rounded(weight, {**settings, "bits": 8})
    return {".weight": (codes - 128).to(torch.int8), ".weight_scale": scales.half()}, plain


def _float8(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """Per channel, or of the whole tensor."""
    torch = importlib.import_module("torch")
    channel = settings.get("strategy") == "channel"
    most = weight.abs().amax(1, keepdim=True) if channel else weight.abs().amax().view(1)
    scales = (most / settings.get("largest", 448)).bfloat16()
    codes = (weight / scales.float()).to(torch.float8_e4m3fn)
    return {".weight": codes, ".weight_scale": scales}, codes.float() * scales.float()


def _fp8(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """A scale for each 128 x 128."""
    torch = importlib.import_module("torch")
    rows, columns = weight.shape
    blocks = -(-rows // 128), -(-columns // 128)
    scales = torch.empty(blocks)
    for row in range(blocks[0]):
        for column in range(blocks[1]):
            block = weight[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            scales[row, column] = block.abs().amax() / 448
    wide = scales.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
    codes = (weight / wide).to(torch.float8_e4m3fn)
    return {".weight": codes, ".weight_scale_inv": scales}, codes.float() * wide


def _bnb4(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    functional = importlib.import_module("bitsandbytes").functional
    codes, state = functional.quantize_4bit(
        weight.bfloat16(), quant_type=settings["kind"], compress_statistics=settings["double"]
    )
    parts = {f".weight.{name}": one for name, one in state.as_dict(packed=True).items()}
    scales = state.absmax
    if settings["double"]:
        scales = functional.dequantize_blockwise(state.absmax, state.state2) + state.offset
    # Not by dequantize_4bit: bitsandbytes 0.50.2 has it wrong on a CPU where rows are no whole blocks.
    torch = importlib.import_module("torch")
    flat = torch.stack((codes.view(-1) >> 4, codes.view(-1) & 15), 1).view(-1)[: weight.numel()]
    plain = state.code[flat.int()] * scales.repeat_interleave(64)[: weight.numel()]
    return {".weight": codes, **parts}, plain.view(weight.shape)


def _bnb8(weight: Any, settings: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    functional = importlib.import_module("bitsandbytes").functional
    codes, scales, _ = functional.int8_vectorwise_quant(weight.half())
    return {".weight": codes, ".SCB": scales}, codes.float() * scales[:, None] / 127


FORMATS: dict[str, Callable[[Any, dict[str, Any]], tuple[dict[str, Any], Any]]] = {
    "gptq": _gptq,
    "awq": _awq,
    "packed": _packed,
    "int8": _int8,
    "float8": _float8,
    "fp8": _fp8,
    "bnb4": _bnb4,
    "bnb8": _bnb8,
}
