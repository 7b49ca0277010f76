"""lm-eval's `local-completions` asks a server for log-likelihoods, with the server's own tokenizer.

    python lm_eval_session.py SERVER MODEL

Runs in an environment that has `lm_eval[api]`. The task is made here, of a local JSONL; nothing is fetched.
Prints for each of its lines the tokens of context and continuation, and the log-likelihood, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

LINES = (
    ("The capital of France is", " Paris"),
    ("The capital of France is", " a bicycle made of glass"),
    ("Two plus two is", " four"),
    ("Once upon a time, in a small village by the sea,", " there lived an old fisherman who had two sons."),
    ("def fibonacci(n):\n    ", "if n < 2:\n        return n"),
    ("Die Hauptstadt von Österreich heißt", " Wien 🙂"),
    ("日本の首都は", "東京です。"),
    ("Water boils at", " 100 degrees Celsius at sea level."),
    ("Q: Is the earth flat?\nA:", " No."),
    ("Q: Is the earth flat?\nA:", " Yes."),
    ("x", " y"),
    (
        "The quick brown fox jumps over the lazy dog. " * 12 + "The quick brown fox",
        " jumps over the lazy dog.",
    ),
)
_TASK = """
task: sentences
dataset_path: json
dataset_kwargs:
  data_files:
    test: {path}
test_split: test
output_type: loglikelihood
doc_to_text: "{{{{context}}}}"
doc_to_target: "{{{{continuation}}}}"
target_delimiter: ""
metric_list:
  - metric: perplexity
  - metric: acc
metadata:
  version: 1
"""


def main() -> None:
    server, model = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):  # lm-eval prints
        lm = LocalCompletionsAPI(
            base_url=f"{server}/v1/completions",
            model=model,
            tokenizer_backend="remote",
            num_concurrent=1,
            batch_size=1,
            max_retries=1,
        )
        found = _samples(lm)
    print(json.dumps(found))


def _samples(lm: LocalCompletionsAPI) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "sentences.jsonl"
        data.write_text("".join(json.dumps({"context": a, "continuation": b}) + "\n" for a, b in LINES))
        (folder / "sentences.yaml").write_text(_TASK.format(path=data))
        manager = TaskManager(include_path=name, include_defaults=False)
        done = simple_evaluate(model=lm, tasks=["sentences"], task_manager=manager, bootstrap_iters=0)
    found = []
    for sample in done["samples"]["sentences"]:
        context, continuation = sample["doc"]["context"], sample["doc"]["continuation"]
        tokens = lm._encode_pair(context, continuation)
        ((logprob, is_greedy),) = sample["filtered_resps"]
        found.append({"tokens": tokens, "logprob": float(logprob), "is_greedy": is_greedy})
    return found


if __name__ == "__main__":
    main()
