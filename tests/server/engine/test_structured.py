"""Answers by a JSON schema: real grammars over a real tokenizer, in an engine whose other requests must not notice."""

import json
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models

import small_engine
from millrace_server.engine.failure import StepOutOfMemory
from millrace_server.engine.grammar import BadGrammar, Grammar, Grammars, tokens_of
from millrace_server.engine.mask import GrammarMask, schema_compiler
from millrace_server.engine.runner import Runner
from small_engine import SmallEngine, request

Compile = Callable[[str], GrammarMask]
EOS = 256
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "kind": {"enum": ["cat", "dog", None]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}
NEIGHBOUR = request("neighbour", b"a healthy neighbour", max_tokens=40)


def is_person(text: str) -> bool:
    """What PERSON says, by hand."""
    found = json.loads(text)
    return (
        list(found) == ["name", "age", "kind", "tags"]
        and isinstance(found["name"], str)
        and len(found["name"]) <= 8
        and type(found["age"]) is int
        and 0 <= found["age"] <= 150
        and found["kind"] in ("cat", "dog", None)
        and isinstance(found["tags"], list)
        and len(found["tags"]) <= 3
        and all(type(tag) is bool for tag in found["tags"])
    )


@pytest.fixture(scope="module")
def runner(tiny_model: Path) -> Runner:
    return small_engine.load(tiny_model)


@pytest.fixture(scope="module")
def compile_schema(tiny_model: Path) -> Compile:
    return schema_compiler(tiny_model, vocabulary=259, eos_token_ids=frozenset({EOS}))


@pytest.fixture(scope="module")
def engine_of(runner: Runner, compile_schema: Compile) -> Callable[..., SmallEngine]:
    def engine(**options: Any) -> SmallEngine:  # noqa: ANN401 - SmallEngine's own
        return SmallEngine(runner, **{"compile_schema": compile_schema, "eos_token_ids": [EOS], **options})

    return engine


def asking(name: str, schema: object, **fields: Any) -> Any:  # noqa: ANN401 - of a request
    return request(name, b"JSON:", schema=json.dumps(schema), **{"max_tokens": 300, "ignore_eos": False, **fields})


def finish(engine: SmallEngine, *names: str) -> None:
    """Step until these have ended; schemas are compiled meanwhile, in a thread."""
    deadline = time.monotonic() + 60
    while not all(engine.finish_reason(name) for name in names):
        assert time.monotonic() < deadline
        engine.step()


def text(engine: SmallEngine, name: str) -> str:
    return bytes(engine.tokens(name)).decode(errors="replace")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 2.0, "top_p": 0.9, "presence_penalty": 1.5}], ids=str)
def test_every_answer_is_valid_or_ended_by_max_tokens(engine_of: Callable[..., SmallEngine], sampling: dict[str, Any]) -> None:
    engine = engine_of()
    names = [str(number) for number in range(8)]
    engine.submit(*(asking(name, PERSON, seed=int(name), **sampling) for name in names))
    finish(engine, *names)
    reasons = {name: engine.finish_reason(name) for name in names}
    assert set(reasons.values()) <= {"stop", "length"}
    assert "stop" in reasons.values()
    assert all(is_person(text(engine, name)) for name, reason in reasons.items() if reason == "stop")
    assert not any(EOS in engine.tokens(name) for name in names)


def test_the_answer_ends_where_only_its_end_may_follow_and_else_by_eos(engine_of: Callable[..., SmallEngine]) -> None:
    engine = engine_of()
    engine.submit(asking("word", {"const": "yes"}), asking("number", {"type": "integer"}, logit_bias={EOS: 100.0}))
    finish(engine, "word", "number")
    assert (text(engine, "word"), engine.finish_reason("word")) == ('"yes"', "stop")
    assert engine.outputs("word")[-1].tokens, "nobody waits for an eos that is the only choice"
    assert text(engine, "number").removeprefix("-").isdigit(), "eos is the likeliest token, and waits until there is a number"
    assert len(engine.tokens("number")) <= 2
    assert engine.finish_reason("number") == "stop"


def test_max_tokens_cut_the_answer_and_say_so(engine_of: Callable[..., SmallEngine]) -> None:
    engine = engine_of()
    engine.submit(asking("cut", {"const": "yes"}, max_tokens=3), asking("just", {"const": "yes"}, max_tokens=5))
    finish(engine, "cut", "just")
    assert (text(engine, "cut"), engine.finish_reason("cut")) == ('"ye', "length")
    assert (text(engine, "just"), engine.finish_reason("just")) == ('"yes"', "stop")


def test_batch_mates_change_nothing_for_each_other(engine_of: Callable[..., SmallEngine]) -> None:
    alone, together = engine_of(), engine_of()
    alone.submit(NEIGHBOUR)
    alone.finish()
    single = engine_of()
    single.submit(asking("person", PERSON, seed=3, temperature=1.0))
    finish(single, "person")
    together.submit(asking("person", PERSON, seed=3, temperature=1.0), NEIGHBOUR)
    together.submit(asking("any", {"type": "object"}, seed=1, temperature=1.0))
    finish(together, "person", "neighbour", "any")
    assert together.tokens("neighbour") == alone.tokens("neighbour")
    assert together.tokens("person") == single.tokens("person")


def test_who_is_preempted_and_computed_again_goes_on_in_the_same_place(engine_of: Callable[..., SmallEngine]) -> None:
    roomy, tight = engine_of(), engine_of(kv_tokens=120)
    for engine in (roomy, tight):
        engine.submit(*(asking(str(number), PERSON, seed=number, temperature=1.0, max_tokens=90) for number in range(4)))
        finish(engine, "0", "1", "2", "3")
    assert [tight.tokens(str(number)) for number in range(4)] == [roomy.tokens(str(number)) for number in range(4)]
    assert min(step.running for step in tight.steps if step.waiting) < 4, "it was too tight for all"


class FailsOnce:
    """A runner that loses everything in one step of those that it is asked for."""

    def __init__(self, runner: Runner, *, at: int) -> None:
        self._runner, self._left = runner, at

    def run(self, chunks: Any) -> Any:  # noqa: ANN401 - the runner's own
        self._left -= 1
        choices = self._runner.run(chunks)
        if self._left == 0:
            raise StepOutOfMemory("all masks were asked already")
        return choices

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the runner's own
        return getattr(self._runner, name)


def test_who_lost_its_cache_in_mid_answer_goes_on_in_the_same_place(
    runner: Runner, engine_of: Callable[..., SmallEngine], compile_schema: Compile
) -> None:
    calm = engine_of()
    shaken = SmallEngine(FailsOnce(runner, at=9), compile_schema=compile_schema, eos_token_ids=[EOS])
    for engine in (calm, shaken):
        engine.submit(*(asking(str(number), PERSON, seed=number, temperature=1.0) for number in range(2)))
        finish(engine, "0", "1")
    assert [shaken.tokens(name) for name in ("0", "1")] == [calm.tokens(name) for name in ("0", "1")]


def test_a_grammar_that_cannot_go_on_ends_its_request_alone(engine_of: Callable[..., SmallEngine], compile_schema: Compile) -> None:
    def with_a_slow_one(schema: str) -> GrammarMask:
        mask = compile_schema(schema)
        if "slow" in schema:
            seconds = iter(range(10**6))
            mask = GrammarMask(Grammar(compile_schema(schema)._grammar._matcher, clock=lambda: float(next(seconds))))
        return mask

    alone = engine_of()
    alone.submit(NEIGHBOUR)
    alone.finish()
    engine = engine_of(compile_schema=with_a_slow_one)
    engine.submit(NEIGHBOUR, asking("slow", {"const": "slow"}), asking("bad", {"not": {}}), asking("good", {"const": "good"}))
    finish(engine, "neighbour", "slow", "bad", "good")
    assert engine.tokens("neighbour") == alone.tokens("neighbour")
    assert text(engine, "good") == '"good"'
    reasons = {name: (engine.finish_reason(name), engine.outputs(name)[-1].error or "") for name in ("slow", "bad")}
    assert reasons["slow"][0] == reasons["bad"][0] == "error"
    assert "takes too long for each token" in reasons["slow"][1]
    assert 'Unimplemented keys: ["not"]' in reasons["bad"][1]


def test_who_leaves_while_the_schema_is_compiled_leaves_nothing(engine_of: Callable[..., SmallEngine], compile_schema: Compile) -> None:
    may_go_on = threading.Event()

    def held(schema: str) -> GrammarMask:
        assert may_go_on.wait(60)
        return compile_schema(schema)

    engine = engine_of(compile_schema=held)
    engine.submit(asking("gone", {"const": 1}), asking("stays", {"const": 2}), NEIGHBOUR)
    engine.step(3)
    assert engine.tokens("neighbour"), "nobody waits for the compiler"
    assert engine.steps[-1].waiting == 2
    engine.cancel("gone")
    engine.step()
    assert engine.steps[-1].waiting == 1
    may_go_on.set()
    finish(engine, "stays", "neighbour")
    assert text(engine, "stays") == "2"
    assert engine.outputs("gone") == []


def test_copies_of_one_answer_are_places_of_their_own(engine_of: Callable[..., SmallEngine]) -> None:
    engine = engine_of()
    copies = asking("copy", PERSON, seed=1, temperature=1.5, max_tokens=200).copies(4)
    engine.submit(*copies)
    finish(engine, *(copy.request_id for copy in copies))
    answers = {text(engine, copy.request_id) for copy in copies}
    assert len(answers) > 1
    assert all(is_person(text(engine, copy.request_id)) for copy in copies if engine.finish_reason(copy.request_id) == "stop")


def test_random_choices_among_what_is_allowed_are_always_json(tiny_model: Path) -> None:
    grammars = Grammars(tokens_of((tiny_model / "tokenizer.json").read_text(), vocabulary=259, eos_token_ids=frozenset({EOS})))
    for seed in range(30):
        chance, grammar, written = random.Random(seed), grammars.compile(json.dumps(PERSON)), bytearray()
        while True:
            bits = grammar.allowed()
            allowed = [token for token in range(259) if bits[token // 8] >> token % 8 & 1]
            token = chance.choice([each for each in allowed if each not in b" \n\r\t"] or allowed)
            assert token != EOS, "PERSON is never complete before its brace"
            written.append(token)
            if grammar.accept(token):
                break
        assert is_person(written.decode())


def test_tokens_that_the_library_cannot_spell_are_refused_in_words() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    with pytest.raises(BadGrammar, match="its tokens cannot be matched with a grammar"):
        tokens_of(words.to_str(), vocabulary=2, eos_token_ids=frozenset())


@pytest.mark.parametrize("vocabulary", [100, 259, 5000])
def test_models_and_tokenizers_may_know_different_numbers_of_tokens(tiny_model: Path, vocabulary: int) -> None:
    compile_schema = schema_compiler(tiny_model, vocabulary=vocabulary, eos_token_ids=frozenset({EOS}))
    logits = torch.zeros(vocabulary)
    compile_schema('{"enum": ["a", 1]}').forbid(logits)
    assert logits.isfinite().nonzero().flatten().tolist() == [ord('"'), ord("1")]


def test_a_token_that_was_not_allowed_is_an_error(tiny_model: Path) -> None:
    tokens = tokens_of((tiny_model / "tokenizer.json").read_text(), vocabulary=259, eos_token_ids=frozenset())
    grammar = Grammars(tokens).compile('{"const": 1}')
    with pytest.raises(BadGrammar, match="doesn't satisfy the grammar"):
        grammar.accept(ord("x"))
