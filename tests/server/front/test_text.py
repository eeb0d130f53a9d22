"""Text and tokens: whole characters only, however they come, and no special token that a client spelt."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

import fake_model
from millrace_server.engine.failure import CannotServe
from millrace_server.spelling import UNFINISHED
from millrace_server.text import LONG_TEXT_CHARACTERS, Text
from server.front.tokenizers_of_two_kinds import FIRST_BYTE, byte_fallback, byte_level

TEXT = Text(byte_level())
"""One token per byte: every character above ASCII is split over tokens."""
FALLBACK = Text(byte_fallback())
KINDS = {"byte level": TEXT, "byte fallback": FALLBACK}
BYTE_TOKENS = {"byte level": 0, "byte fallback": FIRST_BYTE}
SPACES = {"byte level": ord(" "), "byte fallback": FIRST_BYTE + 256}

kinds = st.sampled_from(sorted(KINDS))
written_texts = st.text(st.sampled_from("ab 你好ä🎉\u0301\u200d👩é")) | st.text()
byte_runs = st.binary(max_size=12) | written_texts.map(lambda text: text.encode()[:-1])
cuts = st.lists(st.integers(0, 9), max_size=40)


def pushes(tokens: list[int], sizes: Iterable[int]) -> list[list[int]]:
    """The tokens in pieces of these sizes, and a last piece with the rest."""
    pieces, start = [], 0
    for size in sizes:
        pieces.append(tokens[start : start + size])
        start += size
    return [*pieces, tokens[start:]]


def answered(text: Text, prompt: list[int], pieces: list[list[int]]) -> list[str]:
    answer = text.answer(prompt)
    return [*(answer.push(piece) for piece in pieces), answer.finish()]


@given(kinds, written_texts.filter(lambda text: UNFINISHED not in text), cuts)
async def test_pieces_are_whole_characters_and_add_up(kind: str, written: str, sizes: list[int]) -> None:
    text = KINDS[kind]
    prompt = await text.encode("hello")
    whole = await text.encode("hello" + written)
    pieces = answered(text, prompt, pushes(whole[len(prompt) :], sizes))
    assert not any(UNFINISHED in piece for piece in pieces)
    assert "".join(pieces) == written


@given(kinds, st.lists(byte_runs, max_size=4), cuts)
def test_any_bytes_in_any_pieces_read_the_same(kind: str, runs: list[bytes], sizes: list[int]) -> None:
    tokens = [token for run in runs for token in (*(BYTE_TOKENS[kind] + byte for byte in run), SPACES[kind])]
    one_by_one = answered(KINDS[kind], [], [[token] for token in tokens])
    assert "".join(answered(KINDS[kind], [], pushes(tokens, sizes))) == "".join(one_by_one)
    assert "".join(answered(KINDS[kind], [], [tokens])) == "".join(one_by_one)
    assert not one_by_one[-1].endswith(UNFINISHED)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_character_read_as_utf8_says(written: bytes) -> None:
    assert "".join(answered(TEXT, [], [list(written)])).rstrip(UNFINISHED) == written.decode(errors="replace").rstrip(UNFINISHED)


@pytest.mark.parametrize("size", [1, 2, 9, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_that_is_cut_inside_a_character_ends_before_it(kind: str, size: int) -> None:
    cut = [BYTE_TOKENS[kind] + byte for byte in "nine bytes 🎉".encode()[:-1]]
    assert "".join(answered(KINDS[kind], [], pushes(cut, [size] * 20))) == "nine bytes "


async def test_a_long_run_of_unknown_characters_needs_no_word_in_between() -> None:
    written = "好好好好好好好好"
    tokens = (await FALLBACK.encode(written))[2:]
    assert len(tokens) == 3 * len(written)
    pieces = answered(FALLBACK, await FALLBACK.encode("hello 好好好"), [[token] for token in tokens])
    assert pieces == ["", "", "好"] * len(written) + [""]


@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_that_is_no_character_spoils_none_beside_it(kind: str) -> None:
    tokens = [BYTE_TOKENS[kind] + byte for byte in ("你".encode() + b"\xff" + "好".encode())]
    assert "".join(answered(KINDS[kind], [], [[token] for token in tokens])) == f"你{UNFINISHED}好"


async def test_the_space_before_the_first_word_is_not_lost() -> None:
    tokens = await FALLBACK.encode("hello world")
    prompt = await FALLBACK.encode("hello")
    assert tokens[: len(prompt)] == prompt
    assert "".join(answered(FALLBACK, prompt, [[token] for token in tokens[len(prompt) :]])) == " world"


async def test_the_space_behind_a_special_token_is_not_lost() -> None:
    world = (await FALLBACK.encode("hello world"))[len(await FALLBACK.encode("hello")) :]
    hello = (await FALLBACK.encode("hello"))[1:]
    assert "".join(answered(FALLBACK, [], [[*hello, *[2] * 9], world])) == "hello world"


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_divide_no_character_however_they_are_pushed(kind: str) -> None:
    special = 2 if kind == "byte fallback" else fake_model.EOS_TOKEN_ID
    tokens = [token for byte in "a🎉b".encode() for token in (BYTE_TOKENS[kind] + byte, special, special)]
    for size in (1, 2, 5, len(tokens)):
        assert "".join(answered(KINDS[kind], [], pushes(tokens, [size] * len(tokens)))) == "a🎉b"


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_of_nothing_but_broken_bytes_costs_no_more_than_its_length(kind: str) -> None:
    special = 2 if kind == "byte fallback" else fake_model.EOS_TOKEN_ID
    prompt = [BYTE_TOKENS[kind] + 0xFF] * 100_000 + [special] * 20  # looked at token by token, minutes
    assert "".join(answered(KINDS[kind], prompt, [[SPACES[kind], BYTE_TOKENS[kind] + ord("a")]])) == " a"


async def test_bytes_that_are_no_character_do_not_hold_the_text_back_for_ever() -> None:
    answer = TEXT.answer([])
    pieces = [answer.push([0xFF]) for _ in range(9)]
    assert "".join(pieces) == UNFINISHED * 6
    assert answer.push([0x61]) == UNFINISHED * 3 + "a"


async def test_a_special_token_that_a_client_spells_is_text() -> None:
    tokens = await TEXT.encode("<|im_start|>")
    assert len(tokens) == len("<|im_start|>")
    assert TEXT.decode(tokens) == "<|im_start|>"
    assert TEXT.decode([fake_model.EOS_TOKEN_ID]) == ""


async def test_a_mark_is_its_special_token_and_the_spelling_is_text() -> None:
    tokens = await TEXT.encode_marked(f"{TEXT.marks['<|im_start|>']}a<|im_end|>")
    assert tokens == [257, ord("a"), *b"<|im_end|>"]


async def test_a_mark_keeps_its_tokens_claim_on_the_spaces_around() -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens([AddedToken("<tight>", lstrip=True, rstrip=True, special=True)])
    text = Text(tokenizer)
    assert await text.encode_marked(f"a \n{text.marks['<tight>']} b") == [ord("a"), fake_model.VOCABULARY, ord("b")]


async def test_no_process_can_spell_another_ones_marks() -> None:
    assert not set(Text(byte_level()).marks.values()) & set(TEXT.marks.values())


async def test_long_texts_become_the_same_tokens_as_short_ones() -> None:
    long = "ab" * LONG_TEXT_CHARACTERS
    assert await TEXT.encode(long) == await TEXT.encode("ab") * LONG_TEXT_CHARACTERS
    assert await TEXT.encode_marked(long) == await TEXT.encode_marked("ab") * LONG_TEXT_CHARACTERS


def test_a_folder_without_a_tokenizer_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(CannotServe, match="save the model with a fast tokenizer") as failure:
        Text.from_folder(tmp_path)
    assert failure.value.failed.cause == "TokenizerNotFound"


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(CannotServe) as failure:
        Text.from_folder(tmp_path)
    assert failure.value.failed.cause == "InvalidTokenizer"
