"""The form in which answers are kept: nothing of them is lost on the way in and out, whole or in pieces."""

import math

from hypothesis import given
from hypothesis import strategies as st

from millrace_server.answer import LEAST_LOGPROB, WrittenToken
from millrace_server.answering import Piece, Whole
from millrace_server.engine.messages import Logprobs
from millrace_server.recording import PIECE_CHARACTERS, Recording

likelihoods = st.builds(Logprobs, st.floats(-100, 0), st.lists(st.tuples(st.integers(0, 300), st.floats(-100, 0)), max_size=2))


@st.composite
def wholes(draw: st.DrawFn) -> Whole:
    length = draw(st.integers(0, 3).map(lambda pieces: pieces * PIECE_CHARACTERS)) + draw(st.integers(0, 2))
    text = (draw(st.text(min_size=1)) * length)[:length]
    edges = [edge for piece in range(4) for edge in range(piece * PIECE_CHARACTERS - 1, piece * PIECE_CHARACTERS + 2)]
    offsets = sorted(draw(st.lists(st.sampled_from([edge for edge in edges if 0 <= edge <= length] or [0]), max_size=20)))
    tokens = [WrittenToken(draw(st.integers(0, 300)), draw(likelihoods), offset) for offset in offsets]
    return Whole(text=text, tokens=tokens, finish_reason=draw(st.sampled_from(["stop", "length"])))


recordings = st.builds(Recording, prompt_tokens=st.integers(1, 9), tokens=st.integers(0, 9), wholes=st.lists(wholes(), max_size=3))


@given(recordings)
def test_what_was_encoded_is_decoded(recording: Recording) -> None:
    assert Recording.decode(recording.encode()) == recording


@given(recordings)
def test_the_pieces_put_together_are_the_whole_answers(recording: Recording) -> None:
    together = [Whole() for _ in recording.wholes]
    for piece in recording.pieces():
        assert together[piece.index].finish_reason == "", "an answer's last piece is its last"
        together[piece.index].add(piece)
    assert together == recording.wholes


@given(wholes())
def test_a_piece_is_short_and_a_token_comes_with_the_text_that_it_begins(whole: Whole) -> None:
    pieces = list(Recording(prompt_tokens=1, tokens=1, wholes=[whole]).pieces())
    end = 0
    for number, piece in enumerate(pieces, start=1):
        begin, end = end, end + len(piece.text)
        assert len(piece.text) <= PIECE_CHARACTERS
        assert all(begin <= token.offset < end or number == len(pieces) for token in piece.tokens)
    assert len(pieces) == max(1, math.ceil(len(whole.text) / PIECE_CHARACTERS))


def test_an_answer_without_text_is_one_piece() -> None:
    assert list(Recording(prompt_tokens=1, tokens=1, wholes=[Whole(finish_reason="stop")]).pieces()) == [Piece(0, "", [], "stop")]


def test_an_impossible_token_is_kept_as_a_very_unlikely_one() -> None:
    token = WrittenToken(5, Logprobs(-math.inf, []), 0)
    kept = Recording(prompt_tokens=1, tokens=1, wholes=[Whole(text="a", tokens=[token], finish_reason="stop")])
    assert Recording.decode(kept.encode()).wholes[0].tokens[0].likelihood.logprob == LEAST_LOGPROB
