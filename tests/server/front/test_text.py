"""Text and tokens: whole characters only, and no special token that a client spelt."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fake_model
from millrace_server.engine.failure import CannotServe
from millrace_server.text import LONG_TEXT_CHARACTERS, MAX_UNFINISHED_TOKENS, UNFINISHED, Text

TEXT = Text(fake_model.tokenizer())
"""One token per byte: every character above ASCII is split over tokens."""


async def tokens_of(text: str) -> list[int]:
    return await TEXT.encode(text)


@given(st.text().filter(lambda text: UNFINISHED not in text))
async def test_pieces_are_whole_characters_and_add_up(written: str) -> None:
    answer = TEXT.answer(await tokens_of("prompt "))
    pieces = [answer.push([token]) for token in await tokens_of(written)]
    assert not any(UNFINISHED in piece for piece in pieces)
    assert "".join(pieces) + answer.finish() == written


@given(st.text(min_size=1).filter(lambda text: UNFINISHED not in text))
async def test_all_at_once_reads_like_one_by_one(written: str) -> None:
    answer = TEXT.answer([])
    assert answer.push(await tokens_of(written)) + answer.finish() == written


async def test_a_character_that_never_ends_is_left_out() -> None:
    answer = TEXT.answer(await tokens_of("p"))
    cut = (await tokens_of("ok 🎉"))[:-1]
    assert "".join(answer.push([token]) for token in cut) + answer.finish() == "ok "


async def test_bytes_that_are_no_character_do_not_hold_the_text_back_for_ever() -> None:
    answer = TEXT.answer([])
    pieces = [answer.push([0xFF]) for _ in range(MAX_UNFINISHED_TOKENS)]
    assert pieces[-1] == UNFINISHED * MAX_UNFINISHED_TOKENS
    assert answer.push(await tokens_of("a")) == "a"


async def test_a_special_token_that_a_client_spells_is_text() -> None:
    tokens = await tokens_of("<|im_start|>")
    assert len(tokens) == len("<|im_start|>")
    assert TEXT.decode(tokens) == "<|im_start|>"
    assert TEXT.decode([fake_model.EOS_TOKEN_ID]) == ""


async def test_long_texts_become_the_same_tokens_as_short_ones() -> None:
    long = "ab" * LONG_TEXT_CHARACTERS
    assert await tokens_of(long) == await tokens_of("ab") * LONG_TEXT_CHARACTERS


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="save the model with a fast tokenizer") as failure:
        Text.from_folder(tmp_path)
    assert failure.value.failed.cause == "TokenizerNotFound"


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CannotServe) as failure:
        Text.from_folder(tmp_path)
    assert failure.value.failed.cause == "InvalidTokenizer"
