"""What OpenAI's API knows and this server does not do: refused with the next step, unless the value asks for nothing special."""

from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from millrace_server.errors import BadRequest


class Unsupported(NamedTuple):
    next_step: str
    harmless: tuple[object, ...] = ()
    """Values that mean what happens anyway."""


REQUEST_FIELDS: Mapping[str, Unsupported] = {
    "suffix": Unsupported("put what comes behind into the prompt's text, in the form that the model was trained on"),
    "best_of": Unsupported("ask for n answers with logprobs and choose among them", (1,)),
    "tool_choice": Unsupported("say auto or none; what a tool takes can be had by response_format", ("none", "auto")),
    "functions": Unsupported("send them as tools"),
    "function_call": Unsupported("leave it out", ("none", "auto")),
    "modalities": Unsupported("this server answers in text", (["text"],)),
    "audio": Unsupported("this server answers in text"),
    "prediction": Unsupported("leave it out"),
    "reasoning_effort": Unsupported("send it in chat_template_kwargs, when the model's template knows it"),
    "verbosity": Unsupported("ask for it in a message", ("medium",)),
    "web_search_options": Unsupported("leave it out"),
}
MESSAGE_FIELDS: Mapping[str, Unsupported] = {
    "refusal": Unsupported("put its text into content"),
    "annotations": Unsupported("leave them out", ([],)),
    "audio": Unsupported("send text"),
    "function_call": Unsupported("send it as tool_calls"),
}


def refuse(struct: msgspec.Struct, fields: Mapping[str, Unsupported], *, where: str = "") -> None:
    """Raises BadRequest for the first field that is set to something special. `where` goes in front of its name."""
    for name, unsupported in fields.items():
        value = getattr(struct, name, None)
        if value is not None and not any(type(value) is type(harmless) and value == harmless for harmless in unsupported.harmless):
            raise BadRequest(f"{where}{name} is not supported with this value: {unsupported.next_step}", param=f"{where}{name}")
