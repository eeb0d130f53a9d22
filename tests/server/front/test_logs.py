"""A log line is one JSON object of printable ASCII and bounded length, whatever was put into it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.logs import JSONFormatter

LONGEST = 64 * 1024


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JSONFormatter())
    logger = logging.getLogger("of.this.test")
    logger.addHandler(handler)
    logger.propagate = False
    yield stream
    logger.removeHandler(handler)


def line_of(message: str, **extra: object) -> str:
    record = logging.LogRecord("name", logging.INFO, __file__, 1, message, None, None)
    record.__dict__.update(extra)
    return JSONFormatter().format(record)


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_is_one_printable_line_that_reads_as_it_was(message: str, value: str) -> None:
    line = line_of(message, path=value)
    assert all(" " <= character <= "~" for character in line)
    read = json.loads(line)
    assert (read["message"], read["path"]) == (message, value)


@pytest.mark.parametrize(
    "attack", ['\n{"level": "error"}', "\r", "\x1b[2J", "\x7f", "\x85", "\x9b31m", "\u2028", "\u202e", "\u2066", "\ud800", "\0"]
)
def test_nothing_gets_out_of_its_line(attack: str) -> None:
    line = line_of(attack, path=attack, nested=[attack], **{"é" + attack: 1})
    assert attack not in line
    assert json.loads(line)["path"] == attack
    assert line.isprintable()


def test_values_keep_their_types_and_what_json_does_not_know_becomes_text() -> None:
    read = json.loads(line_of("m", count=3, seconds=0.5, flag=True, nothing=None, kind=ValueError("why"), some={1}))
    assert [read[name] for name in ("count", "seconds", "flag", "nothing", "kind", "some")] == [3, 0.5, True, None, "why", "{1}"]


def test_messages_values_and_exceptions_are_bounded_and_keep_both_ends(stream: io.StringIO) -> None:
    def fails() -> None:
        raise RuntimeError("begin" + "x" * 1_000_000 + "end")

    long = "begin" + "\x9b" * 1_000_000 + "end"
    try:
        fails()
    except RuntimeError:
        logging.getLogger("of.this.test").exception(long, extra={"value": long, "listed": [long] * 3})
    line = stream.getvalue()
    assert len(line) < LONGEST
    read: dict[str, Any] = json.loads(line)
    for name in ("message", "value"):
        assert (read[name][:5], read[name][-3:]) == ("begin", "end")
    assert read["exception"].startswith("Traceback")
    assert ", in fails" in read["exception"]
    assert read["exception"].endswith("xend")
