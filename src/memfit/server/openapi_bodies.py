"""Bodies of chats and completions in the server's document: OpenAI's fields and llama-server's.

What openai/chat.py and openai/llama_asks.py take, field by field. Rules between fields are told in words.
"""

from __future__ import annotations

from memfit.server.openapi_schemas import (
    ANYTHING,
    BOOLEAN,
    NULL,
    SHARE,
    Schema,
    closed,
    either,
    integer,
    list_of,
    named,
    needs_tools,
    number,
    optional,
    request,
    text,
    words,
)

__all__ = ["ANY_STOPS", "COMPONENTS", "FUNCTION_NAME", "INTEGER", "OBJECT"]

_MOST = 2**63 - 1
INTEGER: Schema = integer(-_MOST, _MOST)
OBJECT: Schema = {"type": "object"}

_COUNT = integer(0, 2**31 - 1)
_LAST = integer(-1, 2**31 - 1)  # -1: all
FUNCTION_NAME = text(minLength=1, maxLength=256)
_STOP = text(minLength=1, maxLength=4096)
_STOPS = either(_STOP, list_of(_STOP, maxItems=256))
ANY_STOPS = either(text(maxLength=4096), list_of(text(maxLength=4096), maxItems=256))  # "" stops nothing
_BIAS = either({"type": "number", "exclusiveMinimum": -(2.0**63), "exclusiveMaximum": 2.0**63}, words(False))
_BIASES = either(
    {"type": "object", "additionalProperties": _BIAS, "maxProperties": 65_536},
    list_of(
        {
            "type": "array",
            "prefixItems": [either(named("Token"), text()), _BIAS],
            "items": False,
            "minItems": 2,
        },
        maxItems=65_536,
    ),
)

_SAMPLING: dict[str, Schema] = {
    **dict.fromkeys(("temperature", "dry_multiplier", "dry_base", "mirostat_tau"), number(0, 100)),
    **dict.fromkeys(("dynatemp_range", "dynatemp_exponent", "mirostat_eta"), number(0, 100)),
    **dict.fromkeys(("min_p", "xtc_probability", "xtc_threshold"), number(0, 1)),
    **dict.fromkeys(("top_p", "typical_p"), SHARE),
    **dict.fromkeys(("frequency_penalty", "presence_penalty"), number(-100, 100)),
    **dict.fromkeys(("top_k", "dry_allowed_length"), _COUNT),
    **dict.fromkeys(("repeat_last_n", "dry_penalty_last_n"), _LAST),
    **dict.fromkeys(("stop", "dry_sequence_breakers"), _STOPS),
    "repeat_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 100},
    "top_n_sigma": {"type": "number", "exclusiveMinimum": -(2.0**63), "maximum": 100},
    "mirostat": integer(0, 2),
    "logit_bias": _BIASES,
    "ignore_eos": BOOLEAN,
    "seed": INTEGER,
}
SHARED: dict[str, Schema] = {
    **_SAMPLING,
    **dict.fromkeys(("stream", "return_progress", "timings_per_token", "verbose"), BOOLEAN),
    "model": text(),
    "n": named("Choices"),
    "stream_options": OBJECT,
    "response_format": named("ResponseFormat"),
    "json_schema": OBJECT,
    "grammar": text(),
}
_PROMPT = {"prompt": named("Prompts")}

_CHAT = request(
    {"messages": list_of(named("Message"), minItems=1, maxItems=65_536)},
    {
        **SHARED,
        **dict.fromkeys(("max_tokens", "max_completion_tokens"), named("Limit")),
        **dict.fromkeys(("logprobs", "parallel_tool_calls", "add_generation_prompt"), BOOLEAN),
        "continue_final_message": BOOLEAN,
        "tools": list_of(named("Tool"), maxItems=512),
        "tool_choice": named("ToolChoice"),
        "top_logprobs": integer(0, 1000),
        "reasoning_effort": words("none", "minimal", "low", "medium", "high", "xhigh"),
        "chat_template_kwargs": {"type": "object", "properties": {"enable_thinking": optional(BOOLEAN)}},
        "modalities": words(["text"]),
    },
)
_COMPLETION = request(
    _PROMPT,
    {
        **SHARED,
        "max_tokens": named("Limit"),
        "logprobs": either(BOOLEAN, integer(0, 1000)),
        "best_of": integer(0, 128),
        "echo": BOOLEAN,
        "suffix": text(),
    },
)
_LLAMA: dict[str, Schema] = {
    **SHARED,
    **dict.fromkeys(("post_sampling_probs", "return_tokens"), BOOLEAN),
    "n_predict": named("Limit"),
    "n_probs": either(integer(0, 1000), words(False)),
    "response_fields": list_of(text()),
}
_LLAMA_COMPLETION = request(_PROMPT, _LLAMA)
_INFILL = request(
    {"input_prefix": text(), "input_suffix": text()},
    {**_LLAMA, "input_extra": list_of(request({"text": text()}))},
)
_INFILL["properties"]["prompt"] = text()  # null is refused


_CONTENT = either(
    text(),
    list_of(
        either(
            request({"type": words("text", "input_text", "output_text"), "text": text()}),
            request({"type": words("refusal"), "refusal": text()}),
        )
    ),
)
_ASSISTANT: dict[str, Schema] = {"role": words("assistant")}
_CALL = request({"function": request({"name": text(minLength=1)})})
_CALL["properties"]["function"]["properties"]["arguments"] = either(text(), OBJECT)
_FUNCTION = request({"name": FUNCTION_NAME}, {"description": text(), "parameters": OBJECT})
_NAMED = request({"name": text(minLength=1)})
_CHOICE = {"type": words("function"), "function": _NAMED}
_ALLOWED = request({"tools": list_of(request({"function": _NAMED}))}, {"mode": words("auto", "required")})
_PIECES = list_of(either(named("Token"), text()), minItems=1)

# Where probabilities of the likeliest are asked for, those of the tokens are, too.
_CHAT["allOf"] = [
    either(
        {"properties": {"logprobs": words(True)}, "required": ["logprobs"]},
        {"properties": {"top_logprobs": NULL}},
    ),
    needs_tools("auto", "none"),
]

COMPONENTS: dict[str, Schema] = {
    "Chat": _CHAT,
    "Completion": _COMPLETION,
    "LlamaCompletion": _LLAMA_COMPLETION,
    "Infill": _INFILL,
    "Message": either(
        request({"role": words("system", "developer", "user", "tool", "function"), "content": _CONTENT}),
        request({**_ASSISTANT, "content": _CONTENT}, {"tool_calls": list_of(_CALL)}),
        request({**_ASSISTANT, "tool_calls": list_of(_CALL, minItems=1)}, {"content": _CONTENT}),
        request(
            {**_ASSISTANT, "reasoning_content": text(minLength=1)},
            {"content": _CONTENT, "tool_calls": list_of(_CALL)},
        ),
    ),
    "Tool": request({"function": _FUNCTION}, {"type": words("function")}),
    "ToolChoice": either(
        words("auto", "none", "required"),
        request(_CHOICE),
        request({"type": words("allowed_tools"), "allowed_tools": _ALLOWED}),
    ),
    "ResponseFormat": either(
        closed({"type": words("text")}),
        closed({"type": words("json_object")}, {"schema": OBJECT}),
        closed(
            {
                "type": words("json_schema"),
                "json_schema": closed(
                    {"schema": OBJECT}, dict.fromkeys(("name", "description", "strict"), ANYTHING)
                ),
            }
        ),
    ),
    "Prompt": either(
        named("PromptText"), _PIECES, request({"prompt_string": either(named("PromptText"), _PIECES)})
    ),
    "Prompts": either(named("Prompt"), list_of(named("Prompt"), minItems=1, maxItems=4096)),
}
