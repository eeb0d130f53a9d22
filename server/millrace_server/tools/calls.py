"""Calls in the text of an answer as it comes. Pure, but for the model's own parser, which is asked once, at the end.

Whatever is no call is text, a malformed call too. Text is held back exactly as long as it may become one; so is the white space in front
of a call, which belongs to it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

HERMES_OPEN, HERMES_CLOSE = "<tool_call>", "</tool_call>"
LLAMA_TAG = "<|python_tag|>"
LLAMA_BEGINNINGS = ('{"name"', '{"type"')
"""Of a call, without white space."""
MAX_CLOSES = 8
"""A call's own texts may spell the end of a call so often."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    name: str
    arguments: str
    """JSON."""


Part = str | ToolCall


class CallParser(Protocol):
    def push(self, text: str) -> list[Part]:
        """What is certain now."""

    async def finish(self) -> list[Part]:
        """The rest, when no more text comes."""


class HermesParser:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as often as the model likes, with text around."""

    def __init__(self) -> None:
        self._held = ""
        self._is_inside = False
        self._has_called = False
        self._closes = 0

    def push(self, text: str) -> list[Part]:
        self._held += text
        parts: list[Part] = []
        while (found := self._next()) is not None:
            parts += [found] if found else []
        return parts

    async def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        call = read_call(held) if self._is_inside else None
        if call:
            return [call]
        text = HERMES_OPEN + held if self._is_inside else held
        return [] if (self._has_called and not text.strip()) or not text else [text]

    def _next(self) -> Part | None:
        """None when more text is needed first; empty when only the state changed."""
        return self._inside() if self._is_inside else self._outside()

    def _outside(self) -> Part | None:
        before, marker, behind = self._held.partition(HERMES_OPEN)
        if marker:
            self._held, self._is_inside, self._closes = behind, True, 0
            return before.rstrip()
        certain = before[: len(before) - _beginning_at_end(before, HERMES_OPEN)].rstrip()
        self._held = before[len(certain) :]
        return certain or None

    def _inside(self) -> Part | None:
        end = -1
        for _ in range(self._closes + 1):
            end = self._held.find(HERMES_CLOSE, end + 1)
            if end < 0:
                return None
        body = self._held[:end]
        call = read_call(body)
        if call is None and self._closes < MAX_CLOSES and _is_in_a_string(body):
            self._closes += 1
            return ""
        self._held, self._is_inside = self._held[end + len(HERMES_CLOSE) :], False
        self._has_called |= call is not None
        return call or f"{HERMES_OPEN}{body}{HERMES_CLOSE}"


class LlamaParser:
    """An answer that is nothing but `{"name": …, "parameters": {…}}`, or several with semicolons between, as Llama 3.1 writes them."""

    def __init__(self) -> None:
        self._held = ""
        self._is_text = False

    def push(self, text: str) -> list[Part]:
        self._held += text
        if not self._is_text and self._may_be_a_call():
            return []
        self._is_text = True
        held, self._held = self._held, ""
        return [held] if held else []

    async def finish(self) -> list[Part]:
        held, self._held = self._held, ""
        calls = list(_each_call(held.strip().removeprefix(LLAMA_TAG)))
        if calls and None not in calls:
            return [call for call in calls if call]
        return [held] if held else []

    def _may_be_a_call(self) -> bool:
        start = self._held.lstrip()
        if LLAMA_TAG.startswith(start[: len(LLAMA_TAG)]):
            return True
        dense = "".join(start[:64].removeprefix(LLAMA_TAG).split())
        return any(beginning.startswith(dense[: len(beginning)]) for beginning in LLAMA_BEGINNINGS)


def read_call(text: str) -> ToolCall | None:
    """A JSON object with a name and arguments, which Llama calls parameters. None for anything else."""
    try:
        return _as_call(json.loads(text, parse_constant=_no_constant))
    except (ValueError, RecursionError):
        return None


def _each_call(text: str) -> Iterator[ToolCall | None]:
    decoder = json.JSONDecoder(parse_constant=_no_constant)
    place = 0
    while place < len(text):
        try:
            value, place = decoder.raw_decode(text, place)
        except (ValueError, RecursionError):
            yield None
            return
        yield _as_call(value)
        rest = text[place:].lstrip("; \n")
        place = len(text) - len(rest)


def _as_call(value: object) -> ToolCall | None:
    if not isinstance(value, dict):
        return None
    name, arguments = value.get("name"), value.get("arguments", value.get("parameters", {}))
    if not isinstance(name, str) or not name:
        return None
    if isinstance(arguments, dict):
        return ToolCall(name, json.dumps(arguments, ensure_ascii=False))
    return ToolCall(name, arguments) if isinstance(arguments, str) else None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


def _is_in_a_string(body: str) -> bool:
    """Whether this JSON ends within a text, which may go on behind what looks like the end of the call."""
    try:
        json.loads(body)
    except RecursionError:
        return False
    except ValueError as error:
        return str(error).startswith("Unterminated string")
    return False


def _beginning_at_end(text: str, marker: str) -> int:
    """Characters at the end of `text` with which `marker` begins."""
    return next((length for length in range(min(len(marker) - 1, len(text)), 0, -1) if text.endswith(marker[:length])), 0)
