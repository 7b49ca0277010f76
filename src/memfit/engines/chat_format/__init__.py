"""How a model writes reasoning and calls of tools: found from its template, read from its text, forced."""

from memfit.engines.chat_format.analysis import analyse_template
from memfit.engines.chat_format.form import ChatFormat
from memfit.engines.chat_format.grammar import call_grammar
from memfit.engines.chat_format.parser import FormatParser
from memfit.engines.chat_format.parts import CallArguments, CallBegins, Part, ReasoningPart, TextPart
from memfit.engines.chat_format.spelled import spell_tools, with_spelled_calls

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
    "spell_tools",
    "with_spelled_calls",
]
