"""The first 64 greedy tokens of memfit and llama-completion, from the same sources, repack off.

    python benchmarks/text.py

Texts are compared, not token numbers: llama-completion prints text only.
"""

from __future__ import annotations

import subprocess
import sys

from subjects import memfit, models, peers

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small village by the sea,",
    "The three laws of thermodynamics are: 1.",
    "Übersetze ins Englische: Der Hund schläft. 日本語 🙂",
)
TOKENS = 64


def main() -> int:
    completion = peers() / "llama-completion"
    failures = 0
    for name, path in models().items():
        for prompt in PROMPTS:
            theirs = subprocess.run(
                [
                    *(completion, "-m", path, "-p", prompt, "-n", str(TOKENS), "-c", "4096", "-t", "2"),
                    *("--temp", "0", "-nr", "-lm", "mmap", "--no-warmup"),
                    *("-no-cnv", "--no-display-prompt"),
                ],
                capture_output=True,
                check=True,
                stdin=subprocess.DEVNULL,
            ).stdout.decode(errors="replace")
            code, ours, error = memfit(
                *("run", path, "--ram", "1GiB", "-p", prompt, "--raw", "--temperature", "0"),
                *("--max-tokens", str(TOKENS), "--repack", "off", "--threads", "2"),
            )
            if code:
                sys.exit(error)
            # It ends its output with "\n\n", or " [end of text]\n\n\n" where the model ended.
            expected = theirs.removesuffix("\n").removesuffix("\n").removesuffix(" [end of text]\n")
            same = ours["text"] == expected.removesuffix(" [end of text]")
            failures += not same
            tokens = ours["usage"]["completion_tokens"]
            print(
                f"{name:14} {'same' if same else 'DIFFERENT':9} {tokens:3} tokens  {prompt[:40]!r}",
                flush=True,
            )
            if not same:
                print("  ours  ", repr(ours["text"]), "\n  theirs", repr(theirs))
    print(f"{failures} of {2 * len(PROMPTS)} differ")
    return failures


if __name__ == "__main__":
    sys.exit(main())
