"""Calls in an answer's text: found whole, however the text is divided, and whatever is no call stays text."""

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.tools.calls import CallParser, HermesParser, LlamaParser, Part, ToolCall
from millrace_server.tools.forms import Form, form_of

LOOK = '{"name": "look", "arguments": {"what": "it"}}'
CALLED = ToolCall("look", '{"what": "it"}')
TRICKY = {"what": '</tool_call> <tool_call> naïve 🎉 " \\ {'}


async def parts(parser: CallParser, *pieces: str) -> list[Part]:
    """With texts in a row put together."""
    found: list[Part] = []
    for part in [part for piece in pieces for part in parser.push(piece)] + await parser.finish():
        if isinstance(part, str) and found and isinstance(found[-1], str):
            found[-1] += part
        else:
            found.append(part)
    return found


HERMES: list[tuple[str, list[Part]]] = [
    ("just text", ["just text"]),
    ("", []),
    (f"<tool_call>\n{LOOK}\n</tool_call>", [CALLED]),
    (f"Let me see. \n<tool_call>{LOOK}</tool_call>\n<tool_call>{LOOK}</tool_call>\n", ["Let me see.", CALLED, CALLED]),
    (f"<tool_call>{LOOK}", [CALLED]),
    (f"a <tool_call>{LOOK}</tool_call> b", ["a", CALLED, " b"]),
    ("<tool_call>{nonsense}</tool_call> after", ["<tool_call>{nonsense}</tool_call> after"]),
    ("<tool_call>[1]</tool_call>", ["<tool_call>[1]</tool_call>"]),
    ('<tool_call>{"name": 7}</tool_call>', ['<tool_call>{"name": 7}</tool_call>']),
    ('<tool_call>{"name": "a", "arguments": NaN}</tool_call>', ['<tool_call>{"name": "a", "arguments": NaN}</tool_call>']),
    ('<tool_call>{"name": "a"}</tool_call>', [ToolCall("a", "{}")]),
    ('<tool_call>{"name": "a", "arguments": "as text"}</tool_call>', [ToolCall("a", "as text")]),
    ("<tool_call>{" + '"a":{' * 5000 + "</tool_call>", ["<tool_call>{" + '"a":{' * 5000 + "</tool_call>"]),
    ("1 <tool_cal 2 <tool 3 <", ["1 <tool_cal 2 <tool 3 <"]),
    ("<tool_call", ["<tool_call"]),
    ("spaces stay   ", ["spaces stay   "]),
    (
        f"<tool_call>{json.dumps({'name': 'look', 'arguments': TRICKY})}</tool_call>",
        [ToolCall("look", json.dumps(TRICKY, ensure_ascii=False))],
    ),
    ('<tool_call>"' + "</tool_call>" * 20, ['<tool_call>"' + "</tool_call>" * 20]),
]
LLAMA_LOOK = '{"name": "look", "parameters": {"what": "it"}}'
LLAMA: list[tuple[str, list[Part]]] = [
    (LLAMA_LOOK, [CALLED]),
    (f"<|python_tag|>{LLAMA_LOOK}", [CALLED]),
    (f"\n {LLAMA_LOOK}; {LLAMA_LOOK}\n", [CALLED, CALLED]),
    ('{"type": "function", "name": "look", "parameters": {"what": "it"}}', [CALLED]),
    ("just text", ["just text"]),
    ("<|python but text", ["<|python but text"]),
    ('{"other": 1}', ['{"other": 1}']),
    ('{"name": "look", "parameters": {"what"', ['{"name": "look", "parameters": {"what"']),
    (f"{LLAMA_LOOK} and more", [f"{LLAMA_LOOK} and more"]),
    (f"Here: {LLAMA_LOOK}", [f"Here: {LLAMA_LOOK}"]),
    ("", []),
    ("   ", ["   "]),
]


@pytest.mark.parametrize(
    ("parser", "text", "expected"), [(HermesParser, *case) for case in HERMES] + [(LlamaParser, *case) for case in LLAMA]
)
async def test_calls_are_found_in_one_piece_and_in_single_characters(parser: type[CallParser], text: str, expected: list[Part]) -> None:
    assert await parts(parser(), text) == expected
    assert await parts(parser(), *text) == expected


@given(st.sampled_from(HERMES), st.lists(st.integers(0, 120)))
async def test_how_the_text_is_divided_changes_nothing(case: tuple[str, list[Part]], cuts: list[int]) -> None:
    text, expected = case
    places = [0, *sorted(cut for cut in cuts if cut < len(text)), len(text)]
    assert await parts(HermesParser(), *(text[start:end] for start, end in itertools.pairwise(places))) == expected


def test_what_cannot_become_a_marker_comes_out_at_once() -> None:
    parser = HermesParser()
    assert parser.push("a <tool") == ["a"]
    assert parser.push("s are here") == [" <tools are here"]
    llama = LlamaParser()
    assert llama.push('{"na') == []
    assert llama.push('ture"') == ['{"nature"']
    assert llama.push("more") == ["more"]


def test_a_call_comes_out_when_it_is_complete() -> None:
    parser = HermesParser()
    assert parser.push(f"<tool_call>{LOOK}</tool_call") == []
    assert parser.push(">") == [CALLED]


def test_the_form_is_told_from_the_template() -> None:
    hermes = '{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call> ... <tool_call>'
    llama = 'Respond in the format {"name": function name, "parameters": dictionary of argument name and its value}.'
    assert form_of(hermes, has_parser=False) is Form.hermes
    assert form_of(llama, has_parser=False) is Form.llama
    assert form_of("<tool_call><function=name>", has_parser=False) is None
    assert form_of("{{ messages }}", has_parser=False) is None
    assert form_of(hermes, has_parser=True) is Form.own
