"""How a query and a document become the tokens that a reranker scores, as llama.cpp's server joins them."""

from __future__ import annotations

import re

from memfit.engines.llamacpp.model import LlamaModel
from memfit.errors import UsageError

__all__ = ["pair_tokens"]

_TEMPLATE = "rerank"  # tokenizer.chat_template.rerank, which has {query} and {document}


def pair_tokens(model: LlamaModel, query: str, document: str) -> list[int]:
    """By the model's own template for rerankers; without one the texts follow each other, each with what the
    vocabulary ends a text with. Special tokens are read in a template only, never in what it is filled with.

    Raises:
        UsageError: there is not one token.
    """
    if template := model.chat_template(_TEMPLATE):
        filled = {"{query}": query, "{document}": document}
        text = re.sub(r"\{query\}|\{document\}", lambda found: filled[found[0]], template)
        tokens = model.tokenize(text, add_special=False)
    else:
        marks = model.added_tokens()
        first, second = (
            model.tokenize(text, add_special=False, reads_special=False) for text in (query, document)
        )
        tokens = [*marks["bos"], *first, *marks["eos"], *marks["sep"], *second, *marks["eos"]]
    if not tokens:
        raise UsageError("the query and the document are empty; give at least one token")
    return tokens
