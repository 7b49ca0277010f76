"""How a model writes its reasoning and its calls: found from its chat template, read from its text, and forced."""

from memfit.engines.chat_format.analysis import analyse_template
from memfit.engines.chat_format.form import ChatFormat
from memfit.engines.chat_format.grammar import call_grammar
from memfit.engines.chat_format.parser import FormatParser
from memfit.engines.chat_format.parts import CallArguments, CallBegins, Part, ReasoningPart, TextPart

__all__ = [
    "CallArguments",
    "CallBegins",
    "ChatFormat",
    "FormatParser",
    "Part",
    "ReasoningPart",
    "TextPart",
    "analyse_template",
    "call_grammar",
]
