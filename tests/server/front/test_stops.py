"""Stop strings, against a reader who sees the whole text at once."""

import time
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millrace_server.errors import BadRequest
from millrace_server.protocol import MAX_STOP_CHARACTERS, MAX_STOPS, stop_strings
from millrace_server.stops import StopStrings

letters = st.text(st.sampled_from("ab🎉"), max_size=30)
stop_lists = st.lists(st.text(st.sampled_from("ab🎉"), min_size=1, max_size=5), max_size=4)
sizes = st.lists(st.integers(0, 4), max_size=30)


def read_at_once(text: str, stops: Iterable[str]) -> tuple[str, bool]:
    """The answer, and whether a stop string ended it."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], True
    return text, False


def pieces_of(text: str, lengths: Iterable[int]) -> list[str]:
    pieces, start = [], 0
    for length in lengths:
        pieces.append(text[start : start + length])
        start += length
    return [*pieces, text[start:]]


@given(letters, stop_lists, sizes)
def test_any_pieces_read_like_the_whole(text: str, stops: list[str], lengths: list[int]) -> None:
    matcher = StopStrings(stops)
    released = "".join(matcher.push(piece) for piece in pieces_of(text, lengths))
    assert (released + matcher.finish(), matcher.matched) == read_at_once(text, stops)


@given(letters, stop_lists)
def test_text_is_held_back_only_while_it_may_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher, released = StopStrings(stops), ""
    for end in range(1, len(text) + 1):
        released += matcher.push(text[end - 1])
        if matcher.matched:
            return
        beginnings = {stop[:length] for stop in stops for length in range(1, len(stop))}
        held = max((len(beginning) for beginning in beginnings if text[:end].endswith(beginning)), default=0)
        assert released == text[: end - held]


def test_a_stop_string_over_three_tokens_never_shows() -> None:
    matcher = StopStrings(["</tool>"])
    assert [matcher.push(piece) for piece in ["ok <", "b> </t", "oo", "l> more", "and more"]] == ["ok ", "<b> ", "", "", ""]
    assert matcher.matched


def test_what_was_held_back_comes_at_the_end() -> None:
    matcher = StopStrings(["stop!"])
    assert matcher.push("do not stop") == "do not "
    assert matcher.finish() == "stop"


def test_without_stop_strings_everything_passes() -> None:
    matcher = StopStrings([])
    assert matcher.push("all of it") == "all of it"
    assert (matcher.finish(), matcher.matched) == ("", False)


@pytest.mark.parametrize("stop", ["a" * 10_000, "a" * 9_999 + "b", "ab" * 4_999 + "aa", "a" * 5_000 + "b" + "a" * 4_999])
def test_long_stop_strings_that_overlap_themselves_cost_little(stop: str) -> None:
    text = ("a" * 9_998 + "c") * 5 + ("ab" * 4_990 + "c") * 5
    began = time.process_time()
    matcher = StopStrings([stop])
    released = "".join(matcher.push(text[start : start + 4]) for start in range(0, len(text), 4)) + matcher.finish()
    assert time.process_time() - began < 5, "a matcher that starts over takes minutes"
    assert (released, matcher.matched) == (text, False)


@pytest.mark.parametrize(
    ("stop", "sentence"),
    [
        ("", "stop is refused: a stop string has at least one character"),
        (["a", ""], "stop is refused: a stop string has at least one character"),
        (["a"] * (MAX_STOPS + 1), f"stop is refused: {MAX_STOPS + 1} stop strings, at most {MAX_STOPS} are allowed"),
        (
            ["a" * MAX_STOP_CHARACTERS, "b"],
            f"stop is refused: {MAX_STOP_CHARACTERS + 1} characters together, at most {MAX_STOP_CHARACTERS} are allowed",
        ),
    ],
)
def test_too_much_to_look_for_is_refused_with_the_limit(stop: str | list[str], sentence: str) -> None:
    with pytest.raises(BadRequest) as refused:
        stop_strings(stop)
    assert (str(refused.value), refused.value.param) == (sentence, "stop")


def test_one_stop_string_is_a_list_of_one() -> None:
    assert (stop_strings(None), stop_strings("a"), stop_strings(["a", "b"])) == ((), ("a",), ("a", "b"))
