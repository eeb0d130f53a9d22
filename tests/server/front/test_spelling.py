"""How single tokens are written, with tokenizers of both kinds."""

import fake_model
from millrace_server.spelling import Spelling
from millrace_server.text import Text
from server.front.tokenizers_of_two_kinds import FIRST_BYTE, byte_fallback, byte_level


def test_every_byte_of_a_byte_level_tokenizer_is_itself() -> None:
    spelling = Text(byte_level()).spelling
    assert [spelling.of(token) for token in range(256)] == [bytes([byte]) for byte in range(256)]


def test_bytes_that_stand_in_for_unknown_characters_are_themselves() -> None:
    spelling = Text(byte_fallback()).spelling
    assert [spelling.of(FIRST_BYTE + byte) for byte in range(128, 256)] == [bytes([byte]) for byte in range(128, 256)]


def test_the_space_in_front_of_a_word_is_part_of_it() -> None:
    tokenizer = byte_fallback()
    assert Text(byte_fallback()).spelling.of(tokenizer.token_to_id("▁w")) == b" w"
    assert Text(byte_fallback()).spelling.of(tokenizer.token_to_id("你")) == "你".encode()


def test_special_tokens_are_written_by_name() -> None:
    spelling = Text(byte_level()).spelling
    assert [spelling.of(256 + number).decode() for number in range(3)] == list(fake_model.SPECIAL_TOKENS)


async def test_a_model_that_says_the_id_of_a_mark_tells_nobody_the_mark() -> None:
    """Models have more ids than tokenizers, and a client may bias one to say any of them."""
    text = Text(byte_level())
    beyond = list(range(fake_model.VOCABULARY, fake_model.VOCABULARY + 10))
    assert [text.spelling.of(token) for token in beyond] == [b""] * 10
    answer = text.answer([65])
    assert answer.push(beyond) + answer.finish() == ""
    assert text.decode(text.visible(beyond)) == ""


def test_an_id_that_the_tokenizer_does_not_know_has_no_text() -> None:
    assert Spelling(byte_level(), special=(), secret=()).of(10**6) == b""
