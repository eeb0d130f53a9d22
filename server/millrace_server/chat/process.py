"""The rendering process: `python -m millrace_server.chat.process`, lines on standard input, answers on standard output.

Renders as transformers does, in Jinja's sandbox. A template is somebody else's program, so this process holds no secret, opens no file and
starts no process once it has begun; its memory is limited, and the kernel ends it when a conversation takes too long.
"""

import importlib
import json
import re
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import msgspec
from jinja2 import nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from millrace_server.chat.messages import Conversation, Template
from millrace_server.confined.child import Refusal, serve

CPU_SECONDS = 2.0
"""For one conversation."""
MEMORY_BYTES = 512 * 1024 * 1024
MAX_CHARACTERS = 4 * 1024 * 1024
"""Of a rendered conversation."""
MAX_REASON_CHARACTERS = 300
IMPORTED_LATE = ("jinja2.debug", "jinja2.constants", "encodings.unicode_escape", "html", "textwrap", "pprint")
"""By Jinja, when it first needs them: too late for a process that may open no file."""


def main() -> None:
    for module in IMPORTED_LATE:
        importlib.import_module(module)
    template: jinja2.Template | None = None
    marks: dict[str, str] = {}

    def answer(line: bytes) -> str:
        """The conversation's text; nothing for the template, which comes first."""
        nonlocal template, marks
        try:
            if template is not None:
                text = render(template, msgspec.json.decode(line, type=Conversation))
                text.encode()  # a template may leave half a character
                return text
            given = msgspec.json.decode(line, type=Template)
            marks = given.marks
            template = compiled(given)
        except Exception as error:  # noqa: BLE001 - a template may fail in every way there is
            raise Refusal(reason(error, marks)) from None
        return ""

    serve(answer, cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES)


def compiled(template: Template) -> jinja2.Template:
    """With every special token in its own text replaced by its mark."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    tree = environment.parse(template.source)
    if template.marks:
        _Marking(template.marks).visit(tree)
    return environment.from_string(tree)


def render(template: jinja2.Template, conversation: Conversation) -> str:
    pieces: list[str] = []
    length = 0
    for piece in template.generate(messages=conversation.messages, **conversation.variables):
        length += len(piece)
        if length > MAX_CHARACTERS:
            raise TemplateError(f"the conversation becomes longer than {MAX_CHARACTERS} characters")
        pieces.append(piece)
    return "".join(pieces)


def reason(error: Exception, marks: dict[str, str]) -> str:
    """The error in words that a client may read, hence without marks."""
    if isinstance(error, MemoryError):
        return f"the template needs more than {MEMORY_BYTES // 2**20} MiB"
    why = str(error) if type(error) is TemplateError else f"{type(error).__name__}: {error}"
    for text, mark in marks.items():
        why = why.replace(mark, text)
    return why.encode(errors="replace").decode()[:MAX_REASON_CHARACTERS]


class _Marking(NodeTransformer):
    """Visits the texts that the template itself holds."""

    def __init__(self, marks: dict[str, str]) -> None:
        self._marks = marks
        self._special = re.compile("|".join(re.escape(text) for text in sorted(marks, key=len, reverse=True)))

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.TemplateData:  # noqa: N802 - Jinja's name
        node.data = self._mark(node.data)
        return node

    def visit_Const(self, node: nodes.Const) -> nodes.Const:  # noqa: N802 - Jinja's name
        if isinstance(node.value, str):
            node.value = self._mark(node.value)
        return node

    def _mark(self, text: str) -> str:
        return self._special.sub(lambda found: self._marks[found[0]], text)


class _Generation(Extension):
    """`{% generation %}` tells a trainer which text the model wrote; here only the text counts."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's interface

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:  # noqa: ANN401, FBT001, FBT002 - json.dumps for templates
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(layout: str) -> str:
    return datetime.now().astimezone().strftime(layout)


if __name__ == "__main__":
    main()
