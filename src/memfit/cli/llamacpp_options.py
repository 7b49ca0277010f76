"""What to type here for an option of llama.cpp's programs that memfit does not have: a table of names."""

from __future__ import annotations

from collections.abc import Container, Sequence

__all__ = ["own_option"]

_SIZES = "--vram SIZE and --ram SIZE, which the plan keeps"
_PER_GPU = "--vram 0=SIZE, --vram 1=SIZE: so much of each GPU"
_LOADING = "nothing: the plan chooses how weights are loaded, within --ram"
_NOTHING = "nothing: the plan chooses it"
# What memfit has, in this order where several are listed: the first that the command knows.
_OWN = {
    ("MODEL itself, without an option",): ("-m", "--model"),
    ("hf:ORG/REPO:TYPE as MODEL",): ("-hf", "-hfr", "--hf-repo", "-hff", "--hf-file"),
    ("https://…/FILE.gguf as MODEL",): ("-mu", "--model-url"),
    ("--ctx N",): ("-c", "--ctx-size", "--n-ctx"),
    ("--threads N",): ("-t", "-tb", "--threads-batch"),
    ("--max-tokens N", "--gen-tokens N"): ("-n", "--predict", "--n-predict", "--n-gen"),
    ("--prompt-tokens N",): ("-p", "--n-prompt"),
    ("--depth N",): ("-d", "--n-depth"),
    ("--ubatch N",): ("-b", "--batch-size"),
    ("--parallel N",): ("-np", "--n-parallel"),
    ("--kv-type TYPE, for keys and values",): ("-ctk", "-ctv", "--cache-type-k", "--cache-type-v"),
    ("nothing: the engine uses flash attention where it can",): ("-fa", "--flash-attn"),
    ("--repack off",): ("-nr", "--no-repack"),
    (_LOADING,): ("--mmap", "--no-mmap", "--mlock", "-dio", "--direct-io", "-lm", "--load-mode"),
    (_SIZES,): ("-fit", "--fit", "-fitt", "--fit-target", "-fitc", "--fit-ctx"),
    (_PER_GPU,): ("-ts", "--tensor-split", "-mg", "--main-gpu", "-sm", "--split-mode", "-dev", "--device"),
    (_NOTHING,): (
        *("-nkvo", "--no-kv-offload", "-kvo", "--kv-offload", "--op-offload", "--no-op-offload", "-nopo"),
        *("--no-warmup", "--numa", "--swa-full", "-kvu", "--kv-unified"),
    ),
    ("--temperature T",): ("--temp",),
    ("--system TEXT",): ("-sys", "--system-prompt"),
    ("--file PATH",): ("-f",),
    ("--stop TEXT",): ("-r", "--reverse-prompt"),
    ("--seed S",): ("-s",),
    ("--schema FILE",): ("-j", "--json-schema", "-jf", "--json-schema-file"),
    ("--raw for a text to continue; else the chat template is used",): ("-no-cnv", "-cnv", "--conversation"),
    ("--verbose",): ("-v", "-lv"),
    ("--json",): ("-o", "--output-format"),
}
_BY_NAME = {name: own for own, names in _OWN.items() for name in names}


def own_option(refused: str, arguments: Sequence[str], known: Container[str]) -> str | None:
    """What memfit has for the option that was refused, as one sentence; None where it is not llama.cpp's.

    Of `-fa` only `-f` is `refused`, so the whole is looked for in the `arguments`. `known` are the command's
    own options.
    """
    for argument in arguments:
        name = argument.split("=", 1)[0]
        if name.startswith(refused) and name in _BY_NAME:
            for own in _BY_NAME[name]:
                option = own.partition(" ")[0]
                if not option.startswith("--") or option in known:
                    return f"For llama.cpp's {name}, memfit has {own}."
    return None
