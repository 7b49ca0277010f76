"""Options that several subcommands share (budget, workload, sampling, engine), and the values they become."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from memfit.errors import UsageError, WrongValueError, readable
from memfit.memory.precision import LOAD_IN
from memfit.planner.request import ALL_LAYERS, KV_TYPES, POOLINGS, Budget, Conditions, Workload

if TYPE_CHECKING:
    from memfit.cli.fetch import MakePlan
    from memfit.engines.requests import Sampling
    from memfit.planner.plan import Plan

__all__ = [
    "WHOLE_TEXT",
    "asks_for_transformers",
    "batch_workload_options",
    "budget_options",
    "choice",
    "embedding_options",
    "engine_options",
    "hard_cap_option",
    "machine_option",
    "placement_options",
    "plan_option",
    "refuse_beside_plan",
    "sampling_options",
    "scoring_options",
    "serving_workload_options",
    "take_budget",
    "take_conditions",
    "take_engine",
    "take_plan",
    "take_sampling",
    "take_scoring",
    "take_workload",
    "together",
    "utf8",
    "verbose_option",
    "workload_options",
]

_Options = Callable[[Callable[..., Any]], Callable[..., Any]]  # decorates a command with them


class _WholeText(click.types.StringParamType):
    """One that is repeated on the command line, and has one value, with its spaces, as a variable."""

    def split_envvar_value(self, rv: str) -> list[str]:
        return [rv]


WHOLE_TEXT = _WholeText()


def together(*options: _Options) -> _Options:
    """One decorator of several, in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _number(name: str, text: str, *, default: int | None = None) -> _Options:
    return click.option(name, type=int, metavar="N", default=default, show_default=True, help=text)


def choice(name: str, choices: Sequence[str], text: str) -> _Options:
    """`auto`, unless one of the others is chosen."""
    kind = click.Choice(["auto", *choices])
    return click.option(name, type=kind, default="auto", show_default=True, help=text)


_computing_options = together(
    choice("--kv-type", KV_TYPES, "Type of the KV cache; auto takes q8_0 only where f16 does not fit."),
    _number("--threads", "Threads at most; fewer compute while others need the cores.  [physical cores]"),
)


def _workload(sequences: int | None, context: str, chosen: str = "") -> _Options:
    """`context` and `chosen` say what --ctx and --parallel are where they are not given."""
    return together(
        _number("--ctx", f"Context in tokens, over all sequences.  [{context}]"),
        _number("--parallel", f"Sequences.{chosen}", default=sequences),
        _computing_options,
        choice(
            "--repack",
            ("on", "off"),
            "Rewrite weights for this CPU's kernels while loading; auto takes what measures faster, for "
            "several sequences BF16 too.",
        ),
        _number("--prompt-tokens", "Expected length of a prompt.", default=512),
        _number("--gen-tokens", "Expected length of an answer.", default=128),
        _number(
            "--depth",
            "Tokens in the context when a prompt and an answer begin.  [an answer follows its prompt]",
        ),
    )


workload_options = _workload(1, "4096 or the model's")
# Of a job, whose plan chooses how many sequences there are and how much context they share.
batch_workload_options = _workload(None, "what pays off", "  [what pays off]")

serving_workload_options = _workload(None, "4096 or the model's", "  [4]")

# Of a text that is scored, chunk by chunk.
scoring_options = together(
    _number("--ctx", "Tokens of a chunk.", default=512),
    click.option("--chunks", type=click.IntRange(1), metavar="N", help="Only the text's first N chunks."),
    _computing_options,
)

budget_options = together(
    click.option(
        "--ram", metavar="SIZE", help="Most RAM to use: 8GiB, 800MiB, 90% of what is free.  [what is free]"
    ),
    click.option(
        "--vram",
        multiple=True,
        metavar="[GPU=]SIZE",
        help="Most memory to use of every GPU, or of one (0, Vulkan0); repeatable.  [what is free]",
    ),
    click.option(
        "--rpc",
        multiple=True,
        metavar="HOST:PORT[=SIZE]",
        help="Use a device that `memfit rpc-server` serves there, and at most so much of it; repeatable.",
    ),
    click.option("--no-disk", is_flag=True, help="Refuse to stream weights from disk."),
)
placement_options = together(
    click.option(
        "--gpu-layers",
        "--n-gpu-layers",
        "-ngl",
        metavar="N",
        help="Layers on GPUs and remote devices, from the last on; the output counts as one; all for all.  "
        "[what is fastest]",
    ),
    click.option("--cpu-moe", "-cmoe", is_flag=True, help="Keep all routed experts in RAM."),
    click.option(
        "--n-cpu-moe",
        "-ncmoe",
        type=int,
        metavar="N",
        help="Keep the routed experts of the first N layers in RAM.",
    ),
    click.option(
        "--override-tensor",
        "-ot",
        multiple=True,
        metavar="PATTERN=DEVICE",
        help="Put tensors whose names a regular expression is found in on a device (CPU, CUDA0, HOST:PORT); "
        "repeatable, the first that is found decides.",
    ),
    click.option(
        "--ubatch",
        "--ubatch-size",
        "-ub",
        type=int,
        metavar="N",
        help="Tokens of a prompt per pass.  [what is fastest]",
    ),
)
sampling_options = together(
    _number("--max-tokens", "Most tokens to generate.  [until the model ends]"),
    click.option("--temperature", type=float, default=0.8, show_default=True, help="0 is greedy."),
    click.option("--top-k", type=int, default=40, show_default=True, help="0 is all."),
    click.option("--top-p", type=float, default=0.95, show_default=True),
    click.option("--min-p", type=float, default=0.05, show_default=True),
    click.option("--repeat-penalty", type=float, default=1.0, show_default=True, help="1 is none."),
    click.option("--seed", type=int, help="For the same answer again.  [random]"),
    click.option(
        "--stop", type=WHOLE_TEXT, multiple=True, metavar="TEXT", help="End before this text; repeatable."
    ),
)
engine_options = together(
    choice(
        "--engine",
        ("llamacpp", "transformers"),
        "auto: transformers for a checkpoint, llama.cpp for GGUF; transformers dequantizes GGUF.",
    ),
    click.option(
        "--load-in",
        type=click.Choice(LOAD_IN),
        help="Precision of a checkpoint's weights in transformers; a quantized one stays packed as it is "
        "stored, or is unpacked into another.  [as stored]",
    ),
    click.option("--double-quant", is_flag=True, help="Quantize the scales too, with nf4 and fp4."),
    click.option(
        "--trust-remote-code",
        is_flag=True,
        help="Run the program that comes with the checkpoint; it may do anything you may.",
    ),
)
embedding_options = together(
    click.option(
        "--embeddings",
        "--embedding",
        is_flag=True,
        help="Embed texts, and generate nothing; encoders and rerankers do so unasked.",
    ),
    click.option(
        "--pooling",
        type=click.Choice(POOLINGS),
        help="How the embeddings of a text's tokens become one; none keeps each, rank scores.  [the model's]",
    ),
)
hard_cap_option = click.option(
    "--hard-cap",
    is_flag=True,
    help="Let the kernel keep the RAM budget too, by a memory cgroup; an error where none can be made.",
)
machine_option = click.option(
    "--machine",
    metavar="NAME|FILE",
    help="Plan for a machine that is not this one: a JSON file, or a built-in name such as rtx3060-12gb.",
)
plan_option = click.option(
    "--plan",
    metavar="FILE",
    help="Take a plan that `memfit plan --json` saved, with its budget and workload; no MODEL needed.",
)
verbose_option = click.option("--verbose", is_flag=True, help="Show the engine's log on stderr.")


def take_plan(
    model: str | None,
    options: dict[str, Any],
    say: Callable[[str], None],
    verbose: bool,
    *,
    workload_of: Callable[[dict[str, Any]], Workload] | None = None,
    writes: bool = True,
) -> MakePlan:
    """Remove budget, workload and --plan from a command's keyword arguments; what is returned makes the
    plan, or reads the saved one. Of a repository's quantizations the recommended one is planned.
    `workload_of` stands for `take_workload`; `writes`: models that can only embed are refused."""
    saved = options.pop("plan")
    names = set(options)
    budget, workload = take_budget(options), (workload_of or take_workload)(options)
    engine, conditions = take_engine(options), take_conditions(options)
    names -= set(options)
    if saved is not None:
        refuse_beside_plan(names)
        from memfit.saved_plan import read_plan

        def read(source: str | None) -> Plan:
            planned = read_plan(saved, model=source or model, count_parent=True, say=say)
            if writes:
                planned.require_writes()
            return planned

        return read
    if model is None:
        raise click.UsageError("Missing argument 'MODEL', or --plan FILE.", click.get_current_context())
    from memfit.advise import advise, choices_of
    from memfit.api import plan

    def make(source: str | None) -> Plan:
        named = source or model
        request: dict[str, Any] = {
            "budget": budget,
            "workload": workload,
            "conditions": conditions,
            "count_parent": True,
            "writes": writes,
            "say": say,
        }
        choices = choices_of(named)
        if choices and choices["clash"]:
            raise UsageError(choices["clash"])
        if choices and not asks_for_transformers(engine) and (advice := advise(choices, **request)):
            chosen, count = advice.recommended, len(advice.options)
            say(f"{chosen.name} is recommended of {count} quantizations; memfit plan {named} compares them")
            if advice.warning:
                say(advice.warning)
            assert chosen.plan is not None
            return chosen.plan
        return plan(named, **request, **engine, verbose=verbose)

    return make


def refuse_beside_plan(names: set[str]) -> None:
    """Raises UsageError where one of these parameters was given: the saved plan has its own."""
    context = click.get_current_context()
    given = [
        parameter.opts[0] if source is ParameterSource.COMMANDLINE else str(parameter.envvar)
        for parameter in context.command.params
        if parameter.name in names
        and (source := context.get_parameter_source(parameter.name)) is not ParameterSource.DEFAULT
    ]
    if given:
        raise UsageError(
            f"{', '.join(given)} cannot be given beside --plan, whose budget and workload hold; "
            "make a new plan with it: memfit plan MODEL … --json > FILE",
            field=given[0],
        )


def take_budget(options: dict[str, Any]) -> Budget:
    """Remove the budget options from a command's keyword arguments and build the value."""
    rpc = {}
    for text in options.pop("rpc"):
        endpoint, equals, size = text.partition("=")
        if endpoint in rpc or (equals and not size):
            raise WrongValueError("rpc", f" {text}: give each HOST:PORT once, alone or with =SIZE")
        rpc[endpoint] = size or None
    return Budget(
        ram=options.pop("ram"), vram=_vram(options.pop("vram")), rpc=rpc, disk=not options.pop("no_disk")
    )


def _vram(texts: Sequence[str]) -> str | dict[int | str, str] | None:
    """One size for every GPU, or for some of them, by number or name."""
    numbered: dict[int | str, str] = {}
    for text in texts:
        number, equals, size = text.partition("=")
        if not equals:
            if len(texts) > 1:
                raise WrongValueError("vram", f" {text} is for every GPU; give it alone, or each as N=SIZE")
            return text
        number = number.removeprefix("gpu")  # as reports call it
        key = int(number) if number.isascii() and number.isdigit() and len(number) < 4 else number
        if not size or key in numbered or not re.fullmatch(r"\d+|[A-Za-z]+\d+", number, re.ASCII):
            raise WrongValueError(
                "vram", f" {text}: name each GPU once, by number or name: 0={size or 'SIZE'}"
            )
        numbered[key] = size
    return numbered or None


def utf8(argument: str) -> str:
    """An argument's text, also where the locale's encoding did not know its letters."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def take_conditions(options: dict[str, Any]) -> Conditions:
    """Likewise for the placement options."""
    layers, all_experts, experts = (options.pop(name) for name in ("gpu_layers", "cpu_moe", "n_cpu_moe"))
    if all_experts and experts is not None:
        raise WrongValueError("n_cpu_moe", " and --cpu-moe are two answers to one question; give one of them")
    return Conditions(
        gpu_layers=_layers(layers),
        cpu_moe_layers=ALL_LAYERS if all_experts else experts,
        overrides=tuple(
            map(_override, (one for text in options.pop("override_tensor") for one in text.split(",")))
        ),
        ubatch=options.pop("ubatch"),
    )


def _layers(text: str | None) -> int | None:
    if text in (None, "auto"):
        return None
    if text == "all":
        return ALL_LAYERS
    assert text is not None
    if not text.isascii() or not text.isdigit() or len(text) > 5:
        needed = "a number of layers, all or auto"
        raise WrongValueError("gpu_layers", f" is {text!r}; it must be {needed}", got=text, needed=needed)
    return int(text)


def _override(text: str) -> tuple[str, str]:
    pattern, _, device = text.rpartition("=")
    if not pattern or not device:
        needed = "PATTERN=DEVICE; a comma separates two of them"
        raise WrongValueError(
            "override_tensor", f" is '{readable(text)}'; it must be {needed}", got=text, needed=needed
        )
    return pattern, device


def take_sampling(options: dict[str, Any]) -> Sampling:
    """Likewise for sampling; nothing else is left by then."""
    from memfit.engines.requests import Sampling

    seed = options.pop("seed")
    options["stop"] = tuple(map(utf8, options["stop"]))
    return Sampling(**options, **({} if seed is None else {"seed": seed}))


def take_engine(options: dict[str, Any]) -> dict[str, Any]:
    """Likewise for the engine's options, as `memfit.plan` takes them."""
    return {name: options.pop(name) for name in ("engine", "load_in", "double_quant", "trust_remote_code")}


def asks_for_transformers(engine: dict[str, Any]) -> bool:
    """Whether one of the engine's options can only mean that; GGUF's quantizations are llama.cpp's."""
    only = engine["load_in"] or engine["double_quant"] or engine["trust_remote_code"]
    return bool(only or engine["engine"] == "transformers")


def take_workload(options: dict[str, Any], *, grammars: bool = False) -> Workload:
    """Likewise for the workload, and embeddings where the command knows them; `grammars` as in Workload."""
    context, parallel, generated = (options.pop(name) for name in ("ctx", "parallel", "gen_tokens"))
    alike = ("kv_type", "threads", "repack", "prompt_tokens", "depth")
    return Workload(
        context=context,
        parallel=1 if parallel is None else parallel,
        generated_tokens=generated,
        grammars=grammars,
        embeds=options.pop("embeddings", False),
        pooling=options.pop("pooling", None),
        **{name: options.pop(name) for name in alike},
    )


def take_scoring(options: dict[str, Any]) -> Workload:
    """Likewise for a text that is scored."""
    context = options.pop("ctx")
    alike = {name: options.pop(name) for name in ("kv_type", "threads")}
    return Workload(context=context, prompt_tokens=context, generated_tokens=1, **alike)
