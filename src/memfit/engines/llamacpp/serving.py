"""What a server has to know of a loaded model: its format, its end, its template. In the worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memfit.engines.chat_format import ChatFormat, analyse_template, with_spelled_calls
from memfit.engines.llamacpp.model import LlamaModel
from memfit.engines.llamacpp.template import render_chat
from memfit.engines.served import Served

__all__ = ["find_served"]


def find_served(model: LlamaModel, longest: int) -> Served:
    """`longest` is what one request may have, in tokens."""
    template, special = model.chat_template(), model.special_tokens()
    form = ChatFormat()
    if template is not None:
        text = template

        def render(
            messages: Sequence[Mapping[str, Any]],
            tools: Sequence[Mapping[str, Any]] | None = None,
            add_generation_prompt: bool = True,
            **values: Any,
        ) -> str:
            return render_chat(
                text,
                messages,
                special,
                tools=tools,
                add_generation_prompt=add_generation_prompt,
                options=values,
            )

        form = with_spelled_calls(analyse_template(render, template))
    model.form = form
    names = {name: token for token, name in model.control_tokens.items()}
    return Served(
        form=form,
        control_tokens={one: names[one] for one in form.markers if one in names},
        sequence_tokens=longest,
        trained_tokens=model.trained_tokens,
        template=template,
        pooling=model.pooling if model.config.embeds else None,
        bos=special["bos_token"],
        eos=special["eos_token"],
        end_tokens=tuple(model.end_tokens),
        fill_tokens=tuple(model.fill_tokens),
        longest_piece_bytes=model.longest_piece,
    )
