"""A plan from its JSON, as `to_json` gave it. No field is trusted: anybody may have written it.

Fields are read by the types of the plan's own dataclasses; here is what no type says. Pure: reading the file,
and whether model and machine are still the same, is saved_plan.py's.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from memfit import __version__
from memfit.errors import UsageError, readable
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import LlamaConfig
from memfit.memory.loaded_checkpoint import TransformersConfig
from memfit.memory.precision import precision
from memfit.planner.llamacpp.dequantizing import may_dequantize
from memfit.planner.llamacpp.forms import may_widen
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.llamacpp.streaming import is_dense_matrix, is_matrix
from memfit.planner.plan import Plan, TierUse
from memfit.planner.transformers.transformers_plan import TransformersPlan
from memfit.strict_json import JsonReader, Length

__all__ = ["named_model", "plan_from_json", "require_held"]

_Engine = Literal["llamacpp", "transformers"]
_ENGINES: dict[_Engine, tuple[type[Plan], type]] = {
    "llamacpp": (LlamaPlan, LlamaConfig),
    "transformers": (TransformersPlan, TransformersConfig),
}
_KEYS = {"suggestions": "try", "offloaded_bytes": "streamed_bytes_per_pass"}  # where the JSON has other names
_MODEL = {"source", "architecture", "name", "file_bytes", "parameters", "quantization", "loss"}
_TIER = {"name", "kind", "budget_bytes", "limit_bytes", "reserved_bytes"}
_PARTS = {"weights_bytes", "kv_cache_bytes", "compute_bytes", "overhead_bytes"}
_TIER_NAME = re.compile(r"gpu\d{1,3}|[\w.:%\[\]-]{1,255}:\d{1,5}", re.ASCII)

# All patterns that the planner writes (tensor_devices.py), and no other: the engine's own matcher recurses,
# so that a stranger's pattern could end it.
_PATTERN = re.compile(
    r"\^blk\\\.\(\d{1,5}(?:\|\d{1,5})*\)\\\.\([a-z_\d]{1,32}(?:\|[a-z_\d]{1,32})*\)(?:\\\.(?:[a-z_]{1,32}\$)?|\$)"
    r"|\^\(output\|token_embd\)|\^[a-z_\d]{1,64}(?:\\\.[a-z_]{1,32}){0,3}\$",
    re.ASCII,
)


def named_model(values: Any, where: str) -> tuple[str, LlamaConfig | TransformersConfig]:
    """What the plan calls its model, and the config, which names its files.

    Raises:
        UsageError: not a plan, or one of another version.
    """
    _check_version(values, where)
    reader = _reader(where)
    model = reader.keys(values.get("model"), "model", _MODEL)
    source: str = reader.read(str, model["source"], "model.source")
    engine = reader.read(_Engine, values.get("engine"), "engine")
    config: LlamaConfig | TransformersConfig = reader.read(_ENGINES[engine][1], values["config"], "config")
    if not config.paths:
        reader.refuse("config.paths", [], "the absolute path of each of the model's files")
    if isinstance(config, TransformersConfig):
        if config.trust_remote_code:  # a program beside the weights, which only its user can trust
            reader.refuse("config.trust_remote_code", True, "false: that is for whoever runs the plan to say")
        if config.double_quant and precision(config.load_in).bits != 4:
            reader.refuse("config.double_quant", True, "false, unless load_in is nf4 or fp4")
        gpus = {int(device[3:]) for _, device in config.device_map if device.startswith("gpu")}
        if not gpus <= set(config.gpus) or len(config.gpus) != len(config.gpu_limits):
            reader.refuse("config.gpus", [], "every GPU of config.device_map, with one of config.gpu_limits")
    elif source != "demo" and Path(source).name not in {path.name for path in config.paths}:
        reader.refuse("model.source", source, "the name of one of config.paths")
    return source, config


def plan_from_json(values: Any, where: str, spec: ModelSpec, **given: Any) -> Plan:
    """The plan, equal to the one that was saved, from what `named_model` has looked at; `spec` and what is
    `given` are of its model, freshly read.

    Raises:
        UsageError: a field is missing, wrong, or contradicts another.
    """
    reader = _reader(where)
    kind = _ENGINES[values["engine"]][0]
    keys = {part.name: _KEYS.get(part.name, part.name) for part in fields(kind)}
    given |= {"spec": spec, "loss": None, "tiers": _tiers(reader, values.get("tiers"))}
    found = {name: values[key] for name, key in keys.items() if key in values and name not in given}
    plan: Plan = reader.read_object(kind, found, **given)
    if isinstance(plan, LlamaPlan):
        _check_llama(reader, plan)
    _check_agreement(plan, values, where)
    return plan


def _reader(where: str) -> JsonReader:
    return JsonReader(where, line=Length(16_384, least=1), items=Length(4096))


def _check_version(values: Any, where: str) -> None:
    version = _child(_child(values, "fingerprint"), "memfit")
    if not isinstance(version, str) or not isinstance(_child(values, "config"), dict):
        raise UsageError(f"{where} is no saved plan; memfit plan MODEL --json > FILE writes one")
    if version != __version__:
        raise UsageError(
            f"{where} was made by memfit {readable(version, most=40, kept='')}, and this is {__version__}; "
            "make a new one: memfit plan MODEL --json > FILE"
        )


def _child(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _check_agreement(plan: Plan, values: dict[str, Any], where: str) -> None:
    """Much stands twice in the JSON, for people and for us; an edit of one place must not be in vain."""
    derived = json.loads(json.dumps(plan.to_json()))
    for key in sorted(values.keys() - derived.keys() - {"note"}):
        raise UsageError(f"{where}: {readable(key, most=200, kept='')} contradicts the plan, which has none")
    for key in derived:
        # What is said of the model is read from itself.
        if key != "model" and (key not in values or values[key] != derived[key]):
            raise UsageError(
                f"{where}: {key} contradicts the plan's other fields; a plan cannot be edited, "
                "make a new one: memfit plan MODEL --json > FILE"
            )


def _tiers(reader: JsonReader, values: Any) -> tuple[TierUse, ...]:
    """RAM, and devices, each once; what is said of the disk, `to_json` derives from other fields."""
    if not isinstance(values, list):
        reader.refuse("tiers", values, "a list of tiers")
    if len(values) > 1 and _child(values[-1], "kind") == "disk":
        values = values[:-1]
    tiers = tuple(_tier(reader, one, f"tiers[{index}]") for index, one in enumerate(values))
    names = [tier.name for tier in tiers]
    if "ram" not in names or len(set(names)) != len(names):
        reader.refuse("tiers", values, "ram, and each device once")
    return tiers


def _tier(reader: JsonReader, value: Any, field: str) -> TierUse:
    found = reader.keys(value, field, _TIER | _PARTS | {"total_bytes"})
    parts = {
        key.removesuffix("_bytes"): reader.read(int, size, f"{field}.{key}")
        for key, size in found.items()
        if key in _PARTS
    }
    tier: TierUse = reader.read_object(TierUse, {key: found[key] for key in _TIER}, field, parts=parts)
    if (tier.name == "ram", tier.kind) not in ((True, "ram"), (False, "vram")) or not (
        tier.name == "ram" or _TIER_NAME.fullmatch(tier.name)
    ):
        reader.refuse(f"{field}.name", tier.name, "ram of kind ram, gpu0 or HOST:PORT of kind vram")
    if tier.limit_bytes > tier.budget_bytes:
        reader.refuse(f"{field}.limit_bytes", tier.limit_bytes, "no more than the budget")
    return tier


def _check_llama(reader: JsonReader, plan: LlamaPlan) -> None:
    """That the config's lists go together, and with the tiers: RAM, and then the config's devices in order,
    or some that the plan leaves alone."""
    config, names = plan.config, [tier.name for tier in plan.tiers]
    devices = len(config.devices)
    if len(config.layers) != devices:
        reader.refuse("config.layers", [], "one number for each of config.devices")
    if devices:
        agree = len(names) == 1 + devices and all(
            tier == device or tier.startswith("gpu")
            for tier, device in zip(names[1:], config.devices, strict=True)
        )
        if not agree:
            reader.refuse("tiers", [], "ram, and one for each of config.devices")
    for field in ("embeds", "pooling"):
        if getattr(config, field) != getattr(plan.workload, field):
            reader.refuse(f"config.{field}", getattr(config, field), "the same as workload's")
    for field in ("generation", "together"):
        if (getattr(plan.prediction, field) is None) != config.embeds:
            reader.refuse(f"prediction.{field}", None, "a rate, or null where config.embeds")
    if names[0] != "ram":
        reader.refuse("tiers[0].name", names[0], "ram")
    for index, (pattern, device) in enumerate(config.overrides):
        if not _PATTERN.fullmatch(pattern):
            reader.refuse(f"config.overrides[{index}][0]", pattern, "a pattern that the planner writes")
        if not devices or device > devices:
            reader.refuse(f"config.overrides[{index}][1]", device, "a device of config.devices")
    for key in ("prompt_terms", "generation_terms"):
        for index, term in enumerate(getattr(plan.prediction, key)):
            if term.device > devices:
                reader.refuse(f"prediction.{key}[{index}].device", term.device, "a device of config.devices")


def require_held(plan: LlamaPlan, where: str) -> None:
    """Of a plan that is for this very model: that its matrices may be held in the ways that it has for them.
    The engine would read other types' bytes, and beyond them, and no bytes were planned.

    Raises:
        UsageError: they may not.
    """
    config, spec = plan.config, plan.spec
    alone = not (config.devices or config.streamed)
    own = alone and config.load_mode == "own" and not config.repack
    rewritten = alone and config.load_mode == "read" and config.repack
    quantized = partial(may_dequantize, spec=spec)
    for field, fits, may, needed in (
        ("dequantized", own, quantized, "quantized ones, load_mode own"),
        ("prompt_dequantized", own, quantized, "quantized ones, load_mode own"),
        ("twofold", own and not config.dequantized, is_dense_matrix, "those as they are, load_mode own"),
        ("widened", rewritten, may_widen, "Q5_0 or IQ4_NL, repacked"),
        ("plain", rewritten, is_matrix, "of a model that is repacked"),
    ):
        names = set(getattr(config, field))
        unknown = names - {one.name for one in spec.tensors if may(one)}
        if unknown or (names and not fits):
            refused = min(unknown, default="some")
            _reader(where).refuse(f"config.{field}", refused, f"matrices in RAM alone: {needed}")
