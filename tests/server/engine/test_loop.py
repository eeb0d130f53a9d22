"""The step loop with the real model: fairness, isolation and life cycle, read from the step log."""

import random
from pathlib import Path

import pytest
import torch

import fake_model
from millrace_server.engine.messages import Submit
from millrace_server.engine.model import Runner
from millrace_server.engine.scheduler import Chunk
from millrace_server.engine.sequence import Sequence
from small_engine import SmallEngine, load, request


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return load(fake_model.build(tmp_path_factory.mktemp("llama")))


def alone(runner: Runner, one: Submit) -> list[int]:
    engine = SmallEngine(runner)
    engine.submit(one)
    engine.finish()
    return engine.tokens(one.request_id)


def test_a_request_that_arrives_in_mid_generation_gets_its_first_token_before_the_others_end(runner: Runner) -> None:
    engine = SmallEngine(runner)
    engine.submit(request("first", b"abc", max_tokens=40), request("second", b"defgh", max_tokens=30))
    engine.step(10)
    engine.submit(request("late", b"xyz", max_tokens=4))
    engine.finish()
    assert engine.step_of_first_token("late") == 10
    assert engine.step_of_end("late") < engine.step_of_end("second") < engine.step_of_end("first")


def test_a_long_prompt_does_not_stop_those_who_generate(runner: Runner) -> None:
    engine = SmallEngine(runner, tokens_per_step=16)
    engine.submit(request("generates", b"abc", max_tokens=40))
    engine.step()
    engine.submit(request("long", b"x" * 150, max_tokens=2))
    engine.finish()
    assert all(any(output.request_id == "generates" for output in step.outputs) for step in engine.steps[:40])
    assert engine.step_of_first_token("long") == 10


def test_32_ragged_requests_at_once_answer_as_each_does_alone(runner: Runner) -> None:
    chance = random.Random(5)
    requests = [
        request(
            f"r{index}",
            [chance.randrange(256) for _ in range(chance.randint(1, 120))],
            max_tokens=chance.randint(1, 30),
            temperature=chance.choice([0.0, 0.0, 0.8]),
            top_p=chance.choice([1.0, 0.9]),
            seed=index,
        )
        for index in range(32)
    ]
    engine = SmallEngine(runner, slots=32, tokens_per_step=128)
    engine.submit(*requests)
    engine.finish()
    assert max(step.running for step in engine.steps) > 16
    assert {one.request_id: engine.tokens(one.request_id) for one in requests} == {one.request_id: alone(runner, one) for one in requests}
    assert runner.bytes_held() == 0


def test_a_cancelled_request_frees_its_slot_at_the_next_step(runner: Runner) -> None:
    engine = SmallEngine(runner, slots=1)
    engine.submit(request("runs", b"abc", max_tokens=100), request("waits", b"de", max_tokens=2))
    engine.step(3)
    engine.cancel("runs")
    engine.step()
    assert engine.step_of_first_token("waits") == 3
    engine.finish()
    assert engine.finish_reason("runs") is None
    assert runner.bytes_held() == 0


def test_a_deadline_ends_a_request_in_mid_generation_and_one_that_waits(runner: Runner) -> None:
    engine = SmallEngine(runner, slots=1)
    engine.submit(request("runs", b"abc", max_tokens=100, deadline=5.0), request("waits", b"de", deadline=5.0))
    engine.step(3)
    engine.now = 5.0
    engine.step()
    assert engine.finish_reason("runs") == engine.finish_reason("waits") == "deadline"
    assert len(engine.tokens("runs")) == 3
    assert runner.bytes_held() == 0


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (request("bad", []), "no tokens"),
        (request("bad", [259]), "vocabulary"),
        (request("bad", [-1]), "vocabulary"),
        (request("bad", [1], max_tokens=0), "max_tokens"),
        (request("bad", [1] * 500, max_tokens=13), "limit of 512"),
    ],
)
def test_a_request_that_cannot_run_is_refused_and_its_neighbour_is_not(runner: Runner, bad: Submit, word: str) -> None:
    engine, good = SmallEngine(runner), request("good", b"good")
    engine.submit(good, bad)
    engine.finish()
    (refusal,) = engine.outputs("bad")
    assert refusal.finish_reason == "error"
    assert word in str(refusal.error)
    assert engine.tokens("good") == alone(runner, good)


def test_an_idle_engine_speaks_every_second(runner: Runner) -> None:
    engine = SmallEngine(runner)
    engine.now = 1.0
    engine.step()
    engine.now = 2.0
    engine.step()
    assert [(step.outputs, step.running, step.waiting) for step in engine.steps] == [([], 0, 0)] * 2


class Breaking:
    """The real runner, which fails whenever a prompt that begins with a poisonous token is in the step."""

    POISON = 13

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, chunks: tuple[Chunk, ...]) -> list[int]:
        if any(chunk.sequence.tokens[0] == self.POISON for chunk in chunks):
            raise ArithmeticError("poison")
        tokens: list[int] = self._runner.run(chunks)
        return tokens

    def release(self, sequence: Sequence) -> None:
        self._runner.release(sequence)


def test_a_step_that_fails_ends_its_requests_and_the_loop_goes_on(runner: Runner, caplog: pytest.LogCaptureFixture) -> None:
    engine, good = SmallEngine(Breaking(runner)), request("good", b"good")
    engine.submit(request("poison", [Breaking.POISON]), request("mate", b"mate"))
    engine.step()
    assert engine.finish_reason("poison") == engine.finish_reason("mate") == "error"
    assert "ArithmeticError" in str(engine.outputs("poison")[0].error)
    assert "poison" in caplog.text
    engine.submit(good)
    engine.finish()
    assert engine.tokens("good") == alone(runner, good)
    assert runner.bytes_held() == 0


def test_a_row_of_nan_ends_its_request_and_neither_its_mates_nor_its_successor(tmp_path: Path) -> None:
    runner = load(fake_model.build(tmp_path))
    poisonous = 200
    mate, successor = request("mate", b"mate", max_tokens=12), request("successor", b"next", max_tokens=12)
    expected = alone(runner, mate), alone(runner, successor)
    embedding = runner._model.get_input_embeddings().weight
    with torch.no_grad():
        embedding[poisonous] = float("nan")
    assert poisonous not in {*expected[0], *expected[1]}
    engine = SmallEngine(runner, slots=2)
    engine.submit(request("nan", [1] * 30 + [poisonous]), mate, successor)
    engine.finish()
    assert engine.finish_reason("nan") == "error"
    assert "NaN" in str(engine.outputs("nan")[-1].error)
    assert (engine.tokens("mate"), engine.tokens("successor")) == expected
