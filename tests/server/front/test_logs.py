"""A log line is one JSON object of printable ASCII and bounded length, whatever was put into it."""

import io
import json
import logging
import os
import select
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.logs import JSONFormatter, LineHandler

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


def say(handler: LineHandler, message: str) -> None:
    handler.handle(logging.makeLogRecord({"name": "of.this.test", "levelname": "INFO", "msg": message}))


@pytest.mark.parametrize("length", [10, 1990, 60_000], ids=["short", "long", "longer than a page"])
def test_lines_that_nobody_reads_are_dropped_and_counted_and_keep_nobody_waiting(length: int) -> None:
    reader, writer = os.pipe()
    handler = LineHandler(writer)
    lines = 12_000
    try:
        for number in range(lines):
            exception = (RuntimeError, RuntimeError("x" * length), None)
            handler.handle(logging.makeLogRecord({"name": "n", "levelname": "INFO", "msg": str(number), "exc_info": exception}))
        held = b""
        while select.select([reader], [], [], 0)[0]:
            held += os.read(reader, 65536)
        say(handler, "after")
        held += os.read(reader, 65536)
    finally:
        os.close(reader)
        os.close(writer)
    *kept, complaint, after = held.decode().splitlines()
    whole = [json.loads(line)["message"] for line in kept if line.endswith("}")]
    assert whole == [str(number) for number in range(len(whole))]
    assert 0 <= len(kept) - len(whole) <= 1, "only the last one may be torn, and it spoils no other"
    assert json.loads(complaint)["count"] == lines - len(whole)
    assert json.loads(after)["message"] == "after"


def test_a_full_disk_fails_nobody() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        handler = LineHandler(descriptor)
        say(handler, "one")
        say(handler, "two")
    finally:
        os.close(descriptor)


def test_a_reader_that_is_gone_fails_nobody() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        say(LineHandler(writer), "one")
    finally:
        os.close(writer)


def test_a_file_takes_every_line(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        handler = LineHandler(file.fileno())
        for number in range(100):
            say(handler, f"{number}" * 1000)
    assert len([json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]) == 100
