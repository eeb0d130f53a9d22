"""The demo model's lessons keep what tests ask out of what is trained, and its tokenizer says a byte per token."""

from pathlib import Path

from transformers import AutoTokenizer

from demo import prompts, tokenizer
from demo.data import Kind, lessons


def test_no_training_document_begins_with_a_held_out_prompt() -> None:
    split = lessons()
    held_out = tuple(document.prompt for document in split.held_out)
    assert len(held_out) > 90
    for document in split.training:
        if document.kind is not Kind.questions:
            assert not (document.prompt + document.answer).startswith(held_out)
        else:
            assert document.prompt not in held_out


def test_the_held_out_sums_are_right_and_trained_in_neither_order() -> None:
    split = lessons()
    trained = {document.prompt for document in split.training}
    sums = [document for document in split.held_out if document.kind is Kind.sums]
    for document in sums:
        left, right = (int(number) for number in document.prompt.removesuffix(" =").split(" + "))
        assert int(document.answer) == left + right
        assert trained.isdisjoint({f"{left} + {right} =", f"{right} + {left} ="})


def test_the_checked_prompts_cover_every_raw_kind_and_begin_with_the_demos_first() -> None:
    assert prompts.CHECKED[0].prompt == "1 2 3 4 5"
    assert prompts.CHECKED[0].answer.startswith(" 6 7 8 9 10 ")
    assert {question.kind for question in prompts.CHECKED} == set(Kind) - {Kind.questions}


def test_a_token_is_a_byte_and_encoding_begins_with_the_begin_token() -> None:
    tokens = tokenizer.build()
    text = "7 + 5 = 12, žluťoučký"
    ids = tokens.encode(text).ids
    assert ids[0] == tokens.token_to_id(tokenizer.BEGIN)
    assert len(ids) == 1 + len(text.encode())
    assert tokens.decode(ids[1:]) == text


def test_transformers_reads_the_saved_tokenizer_and_its_chat_template(tmp_path: Path) -> None:
    tokenizer.save(tokenizer.build(), tmp_path, max_length=512)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    chat = [{"role": "user", "content": "What is a Pod?"}]
    rendered = loaded.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == tokenizer.BEGIN + tokenizer.chat_prompt("What is a Pod?")
    assert loaded(tokenizer.chat_prompt("What is a Pod?")).input_ids == loaded(rendered, add_special_tokens=False).input_ids
    assert loaded.eos_token == tokenizer.END
