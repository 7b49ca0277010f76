"""A LlamaPlan from its JSON, as `to_json` gave it. Trusts no field: whoever writes a plan may be anybody.

Pure: reading the file, and whether model and machine are still the same, is saved_plan.py's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from memfit import __version__
from memfit.errors import UsageError, readable
from memfit.headers.model_spec import ModelSpec
from memfit.memory.estimate import RAM, LlamaConfig
from memfit.planner.fingerprint import FileMark, Fingerprint, NamedBytes
from memfit.planner.llamacpp.dequantizing import may_dequantize
from memfit.planner.llamacpp.llama_plan import LlamaPlan
from memfit.planner.plan import TierUse
from memfit.planner.request import KV_TYPES, Workload
from memfit.planner.speed import Prediction, Rate, Term
from memfit.strict_json import Fields

__all__ = ["named_model", "plan_from_json"]

_MOST_TOKENS = 2**31 - 1
_MOST_BYTES = 2**60
_MOST_FILES = 1000
_MOST_DEVICES = 64
_MOST_ITEMS = 4096
_LONGEST = 16_384  # characters: a path, or a pattern that names every layer
_MOST_UBATCH = 65_536
_BASES = ("assumed", "profile", "calibrated")
_TIER_NAME = re.compile(r"gpu\d{1,3}|[\w.:%\[\]-]{1,255}:\d{1,5}", re.ASCII)

# All patterns that the planner writes (tensor_devices.py), and no other: the engine's own matcher
# recurses, so that a stranger's pattern could end it.
_PATTERN = re.compile(
    r"\^blk\\\.\(\d{1,5}(?:\|\d{1,5})*\)\\\.\([a-z_]{1,32}(?:\|[a-z_]{1,32})*\)\\\.|\^\(output\|token_embd\)",
    re.ASCII,
)

_PLAN = {
    *("model", "engine", "context", "parallel", "kv_type", "ubatch", "threads", "repack", "load_mode"),
    *("devices", "layers", "overrides", "fits", "why", "tiers", "streamed_bytes_per_pass", "predicted"),
    *("workload", "config", "prediction", "fingerprint"),
}
_SHORT = {"needs_bytes", "budget_bytes", "short_bytes", "try", "error"}  # only where the plan does not fit
_MODEL = {"source", "architecture", "name", "file_bytes", "parameters", "quantization"}
_TIER_PARTS = ("weights", "kv_cache", "compute", "overhead")
_TIER_BYTES = ("budget", "limit", *_TIER_PARTS, "reserved", "total")
_TIER = {"name", "kind", *(f"{part}_bytes" for part in _TIER_BYTES)}


def named_model(values: Any, where: str) -> tuple[str, tuple[Path, ...]]:
    """What the plan calls its model, and the model's files.

    Raises:
        UsageError: not a plan, or one of another version.
    """
    _check_version(values, where)
    fields = Fields(_child(values, "model"), where, "model", _MODEL)
    source = fields.text("source", most=_LONGEST)
    paths = _paths(Fields(_child(values, "config"), where, "config", _keys(LlamaConfig)))
    if source != "demo" and Path(source).name not in {path.name for path in paths}:
        fields.refuse("source", source, "the name of one of config.paths")
    return source, paths


def plan_from_json(values: Any, where: str, spec: ModelSpec) -> LlamaPlan:
    """The plan, equal to the one that was saved; `spec` is its model's, freshly read.

    Raises:
        UsageError: a field is missing, wrong, or contradicts another.
    """
    _check_version(values, where)
    short = bool(_SHORT & values.keys())
    fields = Fields(values, where, "", _PLAN | _SHORT if short else _PLAN)
    config = _config(fields.child("config", _keys(LlamaConfig)))
    plan = LlamaPlan(
        spec=spec,
        config=config,
        context=fields.integer("context", 1, _MOST_TOKENS),
        tiers=_tiers(fields, config),
        prediction=_prediction(fields.child("prediction", _keys(Prediction)), len(config.devices)),
        why=_texts(fields, "why"),
        suggestions=_texts(fields, "try") if short else (),
        workload=_workload(fields.child("workload", _keys(Workload))),
        fingerprint=_fingerprint(fields.child("fingerprint", _keys(Fingerprint))),
    )
    _check_dequantized(plan, fields.child("config", _keys(LlamaConfig)))
    _check_agreement(plan, values, where)
    return plan


def _check_dequantized(plan: LlamaPlan, fields: Fields) -> None:
    """The engine would read beyond a tensor whose type is not the one that it was told."""
    config = plan.config
    known = {one.name for one in plan.spec.tensors if may_dequantize(one, plan.spec)}
    alone = config.load_mode == "own" and not (config.repack or config.devices)
    if config.dequantized and not (alone and known.issuperset(config.dequantized)):
        refused = next((name for name in config.dequantized if name not in known), "some")
        fields.refuse("dequantized", refused, "quantized matrices, in RAM alone and with load_mode own")


def _check_version(values: Any, where: str) -> None:
    if _child(values, "engine") == "transformers":
        raise UsageError(f"{where} is a plan for transformers, which is made anew each time: name the model")
    fingerprint = _child(values, "fingerprint")
    version = _child(fingerprint, "memfit")
    if not isinstance(version, str) or not isinstance(_child(values, "config"), dict):
        raise UsageError(f"{where} is no saved plan; memfit plan MODEL --json > FILE writes one")
    if version != __version__:
        raise UsageError(
            f"{where} was made by memfit {readable(version, most=40, kept='')}, and this is {__version__}; "
            "make a new one: memfit plan MODEL --json > FILE"
        )


def _child(values: Any, key: str) -> Any:
    return values.get(key) if isinstance(values, dict) else None


def _keys(kind: type) -> set[str]:
    return set(kind.__dataclass_fields__)  # type: ignore[attr-defined]


def _check_agreement(plan: LlamaPlan, values: dict[str, Any], where: str) -> None:
    """Much stands twice in the JSON, for people and for us; an edit of one place must not be in vain."""
    for key, derived in json.loads(json.dumps(plan.to_json())).items():
        if key != "model" and values[key] != derived:  # its facts are read from the model itself
            raise UsageError(
                f"{where}: {key} contradicts the plan's other fields; a plan cannot be edited, "
                "make a new one: memfit plan MODEL --json > FILE"
            )


# -- the parts ---------------------------------------------------------------------------------------


def _texts(fields: Fields, key: str) -> tuple[str, ...]:
    items, indices = fields.items(key, most=_MOST_ITEMS)
    return tuple(items.text(index, most=_LONGEST) for index in indices)


def _paths(config: Fields) -> tuple[Path, ...]:
    items, indices = config.items("paths", most=_MOST_FILES)
    paths = tuple(Path(items.text(index, most=_LONGEST)) for index in indices)
    if not paths or not all(path.is_absolute() for path in paths):
        config.refuse("paths", config.value("paths"), "the absolute path of each of the model's files")
    return paths


def _config(fields: Fields) -> LlamaConfig:
    context = fields.integer("context", 1, _MOST_TOKENS)
    devices = _texts(fields, "devices")
    items, indices = fields.items("layers", most=_MOST_DEVICES)
    layers = tuple(items.integer(index, 0, _MOST_ITEMS) for index in indices)
    if len(layers) != len(devices):
        fields.refuse("layers", fields.value("layers"), "one number for each of config.devices")
    return LlamaConfig(
        paths=_paths(fields),
        context=context,
        parallel=fields.integer("parallel", 1, 256),  # LLAMA_MAX_SEQ
        kv_type=fields.choice("kv_type", KV_TYPES),
        ubatch=fields.integer("ubatch", 1, _MOST_UBATCH),
        threads=fields.integer("threads", 1, 512),  # GGML_MAX_N_THREADS
        repack=fields.boolean("repack"),
        load_mode=fields.choice("load_mode", ("mmap", "read", "own")),
        devices=devices,
        layers=layers,
        overrides=_overrides(fields, len(devices)),
        streamed=_texts(fields, "streamed"),
        ring_bytes=fields.integer("ring_bytes", 0, _MOST_BYTES),
        dequantized=_texts(fields, "dequantized"),
        kv_unified=fields.boolean("kv_unified"),
        grammar_bytes=fields.integer("grammar_bytes", 0, _MOST_BYTES),
    )


def _overrides(config: Fields, devices: int) -> tuple[tuple[str, int], ...]:
    found = []
    for pair in config.pairs("overrides", most=_MOST_ITEMS if devices else 0):
        pattern = pair.text("0", most=_LONGEST)
        if not _PATTERN.fullmatch(pattern):
            pair.refuse("0", pattern, "a pattern that the planner writes")
        found.append((pattern, pair.integer("1", RAM, devices)))
    return tuple(found)


def _tiers(plan: Fields, config: LlamaConfig) -> tuple[TierUse, ...]:
    """RAM, and then devices: those of the config, in their order, or some that the plan leaves alone."""
    children = list(plan.children("tiers", _TIER, most=2 + _MOST_DEVICES))
    if config.streamed and children and children[-1].value("kind") == "disk":
        children.pop()  # it says of `streamed` what to_json says again
    tiers = tuple(_tier(fields, is_ram=index == 0) for index, fields in enumerate(children))
    names = [tier.name for tier in tiers]
    if not tiers or len(set(names)) != len(names):
        plan.refuse("tiers", plan.value("tiers"), "ram, and each device once")
    if config.devices:
        agree = len(names) == 1 + len(config.devices) and all(
            tier == device or tier.startswith("gpu")
            for tier, device in zip(names[1:], config.devices, strict=True)
        )
        if not agree:
            plan.refuse("tiers", plan.value("tiers"), "ram, and one for each of config.devices")
    return tiers


def _tier(fields: Fields, *, is_ram: bool) -> TierUse:
    name = fields.text("name")
    if is_ram != (name == "ram") or not (is_ram or _TIER_NAME.fullmatch(name)):
        fields.refuse("name", name, "ram of the first tier, gpu0 or HOST:PORT of another one")
    budget = fields.integer("budget_bytes", 0, _MOST_BYTES)
    return TierUse(
        name=name,
        kind=fields.choice("kind", ("ram",) if is_ram else ("vram",)),
        budget_bytes=budget,
        limit_bytes=fields.integer("limit_bytes", 0, budget),
        parts={part: fields.integer(f"{part}_bytes", 0, _MOST_BYTES) for part in _TIER_PARTS},
        reserved_bytes=fields.integer("reserved_bytes", 0, _MOST_BYTES),
    )


def _prediction(fields: Fields, devices: int) -> Prediction:
    return Prediction(
        prompt=_rate(fields, "prompt"),
        generation=_rate(fields, "generation"),
        together=_rate(fields, "together"),
        basis=fields.choice("basis", _BASES),
        prompt_terms=_terms(fields, "prompt_terms", devices),
        generation_terms=_terms(fields, "generation_terms", devices),
    )


def _rate(prediction: Fields, key: str) -> Rate:
    fields = prediction.child(key, _keys(Rate))
    return Rate(value=fields.rate("value"), low=fields.rate("low"), high=fields.rate("high"))


def _terms(prediction: Fields, key: str, devices: int) -> tuple[Term, ...]:
    return tuple(
        Term(
            device=fields.integer("device", RAM, devices),
            kind=fields.text("kind"),
            seconds=fields.seconds("seconds"),
        )
        for fields in prediction.children(key, _keys(Term), most=_MOST_ITEMS)
    )


def _workload(fields: Fields) -> Workload:
    def number(key: str) -> int:
        return fields.integer(key, 0, _MOST_TOKENS)

    def perhaps(key: str) -> int | None:
        return None if fields.is_null(key) else number(key)

    return Workload(  # which checks ranges itself
        context=perhaps("context"),
        parallel=number("parallel"),
        kv_type=fields.text("kv_type"),
        threads=perhaps("threads"),
        repack=fields.text("repack"),
        prompt_tokens=number("prompt_tokens"),
        generated_tokens=number("generated_tokens"),
        depth=perhaps("depth"),
        kv_unified=fields.boolean("kv_unified"),
        grammars=fields.boolean("grammars"),
    )


def _fingerprint(fields: Fields) -> Fingerprint:
    return Fingerprint(
        memfit=fields.text("memfit"),
        python=fields.text("python"),
        engine=fields.text("engine"),
        profile=None if fields.is_null("profile") else fields.text("profile"),
        cpu=fields.text("cpu"),
        cores=fields.integer("cores", 1, _MOST_ITEMS),
        ram_bytes=fields.integer("ram_bytes", 1, _MOST_BYTES),
        gpus=_named_bytes(fields, "gpus"),
        remote_devices=_named_bytes(fields, "remote_devices"),
        files=tuple(
            FileMark(
                size_bytes=file.integer("size_bytes", 0, _MOST_BYTES), sha256=file.text("sha256", most=64)
            )
            for file in fields.children("files", _keys(FileMark), most=_MOST_FILES)
        ),
        counts_parent=fields.boolean("counts_parent"),
    )


def _named_bytes(fields: Fields, key: str) -> tuple[NamedBytes, ...]:
    return tuple(
        NamedBytes(name=one.text("name"), total_bytes=one.integer("total_bytes", 0, _MOST_BYTES))
        for one in fields.children(key, _keys(NamedBytes))
    )
