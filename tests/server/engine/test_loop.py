"""The step loop with the real model: fairness, isolation and life cycle, read from the step log."""

import dataclasses
import random
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch

import fake_model
from millrace_server.engine.failure import DeviceLost, StepOutOfMemory
from millrace_server.engine.messages import Submit
from millrace_server.engine.plan import Chunk
from millrace_server.engine.runner import Runner
from millrace_server.engine.sequence import Choice, Sequence
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
        (request("bad", [1], logprobs=2**31), "logprobs"),
        (request("bad", [1], logprobs=-1), "logprobs"),
        (request("bad", [1], stop_token_ids=[1] * 1025), "stop_token_ids"),
        (request("bad", [1], logit_bias=dict.fromkeys(range(1025), 1.0)), "logit_bias"),
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
        self.runs = 0
        self.tokens = 0
        """Computed in all runs."""

    def release(self, sequence: Sequence) -> None:
        self._runner.release(sequence)

    def forget(self, blocks: Iterable[bytes]) -> None:
        self._runner.forget(blocks)

    def reset(self) -> None:
        self._runner.reset()

    def is_sound(self) -> bool:
        return self._runner.is_sound()

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        self.runs += 1
        self.tokens += sum(chunk.length for chunk in chunks)
        if any(chunk.sequence.tokens[0] == self.POISON for chunk in chunks):
            raise ArithmeticError("poison")
        return self._runner.run(chunks)


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_poisonous_request_of_eight_fails_alone_and_is_found_in_few_runs(
    runner: Runner, place: int, caplog: pytest.LogCaptureFixture
) -> None:
    mates = [request(f"mate{index}", [index + 20] * (index + 1), max_tokens=4) for index in range(7)]
    breaking = Breaking(runner)
    engine = SmallEngine(breaking, slots=8)
    engine.submit(*mates[:place], request("poison", [Breaking.POISON]), *mates[place:])
    engine.step()
    assert breaking.runs <= 2 * 3 + 1
    assert engine.finish_reason("poison") == "error"
    assert "ArithmeticError" in str(engine.outputs("poison")[0].error)
    assert "poison" in caplog.text
    engine.finish()
    assert [engine.tokens(mate.request_id) for mate in mates] == [alone(runner, mate) for mate in mates]
    assert runner.bytes_held() == 0


def test_two_poisonous_requests_fail_and_nobody_else_does(runner: Runner) -> None:
    mates = [request(f"mate{index}", [index + 20], max_tokens=4) for index in range(6)]
    engine = SmallEngine(Breaking(runner), slots=8)
    engine.submit(request("poison1", [Breaking.POISON]), *mates, request("poison2", [Breaking.POISON]))
    engine.finish()
    assert engine.finish_reason("poison1") == engine.finish_reason("poison2") == "error"
    assert [engine.tokens(mate.request_id) for mate in mates] == [alone(runner, mate) for mate in mates]


def test_a_request_that_fails_again_and_again_is_refused_without_being_run(runner: Runner) -> None:
    breaking = Breaking(runner)
    engine = SmallEngine(breaking)
    for attempt in range(3):
        engine.submit(request(f"poison{attempt}", [Breaking.POISON]))
        engine.now += 1
        engine.step()
    assert breaking.runs == 2
    assert engine.finish_reason("poison2") == "quarantined"
    assert "refused" in str(engine.outputs("poison2")[0].error)
    engine.submit(request("other", [Breaking.POISON + 1], max_tokens=1))
    engine.step()
    assert engine.finish_reason("other") == "length"


class Forgetful(Breaking):
    """Loses its memory once: then no step with any of the present sequences can be computed until everything is computed anew."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner)
        self.lost = False

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        if self.lost:
            raise RuntimeError("the memory is gone")
        return super().run(chunks)

    def reset(self) -> None:
        self._runner.reset()
        self.lost = False


def test_when_a_step_fails_for_everybody_its_requests_end_and_the_others_are_computed_anew(runner: Runner) -> None:
    forgetful = Forgetful(runner)
    engine = SmallEngine(forgetful, slots=4, tokens_per_step=8)
    spectator = request("spectator", b"s" * 30, max_tokens=3)
    engine.submit(request("a", b"a"), request("b", b"b"))
    engine.step()
    engine.submit(request("long", b"long" * 20), spectator)
    engine.step()
    assert not engine.outputs("spectator")
    forgetful.lost = True
    engine.step()
    assert {name: engine.finish_reason(name) for name in ("a", "b", "long")} == dict.fromkeys(("a", "b", "long"), "error")
    engine.finish()
    assert engine.tokens("spectator") == alone(runner, spectator)
    assert runner.bytes_held() == 0


class Small(Breaking):
    """A device whose memory holds `most` sequences in a step."""

    def __init__(self, runner: Runner, most: int) -> None:
        super().__init__(runner)
        self.most = most

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        if len(chunks) > self.most:
            raise StepOutOfMemory(f"{len(chunks)} > {self.most}")
        return super().run(chunks)


def test_out_of_memory_halves_the_batch_until_it_fits_and_every_request_is_answered(runner: Runner) -> None:
    requests = [request(f"r{index}", [index + 20] * 5, max_tokens=6) for index in range(8)]
    small = Small(runner, most=3)
    engine = SmallEngine(small, slots=8)
    engine.submit(*requests)
    engine.finish()
    assert engine.scheduler.cap == 2
    assert [engine.tokens(one.request_id) for one in requests] == [alone(runner, one) for one in requests]
    assert runner.bytes_held() == 0


def test_a_request_that_does_not_fit_even_alone_ends_with_an_error(runner: Runner) -> None:
    engine = SmallEngine(Small(runner, most=0))
    engine.submit(request("large", b"large"))
    engine.finish()
    assert "not enough memory" in str(engine.outputs("large")[-1].error)


def test_a_request_that_does_not_fit_alone_leaves_the_others_their_slots(runner: Runner) -> None:
    class Fat(Breaking):
        def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
            if any(chunk.sequence.request.request_id == "fat" for chunk in chunks):
                raise StepOutOfMemory("fat")
            return super().run(chunks)

    requests = [request(f"r{index}", [index + 20] * 5, max_tokens=6) for index in range(7)]
    engine = SmallEngine(Fat(runner), slots=8)
    engine.submit(request("fat", b"fat"), *requests)
    engine.finish()
    assert engine.finish_reason("fat") == "error"
    assert engine.scheduler.cap == 8
    assert [engine.tokens(one.request_id) for one in requests] == [alone(runner, one) for one in requests]


def test_more_run_at_once_again_when_memory_suffices_again(runner: Runner) -> None:
    small = Small(runner, most=3)
    engine = SmallEngine(small, slots=4)
    engine.submit(*(request(f"r{index}", [index + 20], max_tokens=90) for index in range(4)))
    engine.step(3)
    assert engine.scheduler.cap == 2
    small.most = 4
    engine.finish()
    assert engine.scheduler.cap == 4


def test_memory_that_lacks_for_the_harmless_token_is_no_lost_device(runner: Runner) -> None:
    class Full(Breaking):
        def is_sound(self) -> bool:
            raise StepOutOfMemory("full")

    engine = SmallEngine(Full(runner))
    engine.submit(request("poison", [Breaking.POISON]))
    engine.step()
    engine.submit(request("later", b"later", max_tokens=3))
    engine.finish()
    assert (engine.finish_reason("poison"), engine.finish_reason("later")) == ("error", "length")


def test_torchs_lack_of_memory_on_a_cpu_is_known_for_what_it_is(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "_forward", lambda *_: torch.empty(10**15))
    sequence = Sequence(request("r", b"r"), seed=0, arrived=0)
    with pytest.raises(StepOutOfMemory):
        runner.run((Chunk(sequence, 0, 1),))
    runner.release(sequence)


def test_broken_weights_end_the_process_and_not_only_the_requests(tmp_path: Path) -> None:
    runner = load(fake_model.build(tmp_path))
    engine = SmallEngine(runner)
    engine.submit(request("a", b"a"), request("b", b"b"))
    engine.step()
    with torch.no_grad():
        runner._model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(DeviceLost):
        engine.step()


def test_a_runner_that_cannot_compute_even_a_harmless_token_ends_the_process(runner: Runner) -> None:
    class Dead(Breaking):
        def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
            raise RuntimeError(f"no step of {len(chunks)} works")

        def is_sound(self) -> bool:
            return bool(self.run(()))

    engine = SmallEngine(Dead(runner))
    engine.submit(request("a", b"a"))
    with pytest.raises(DeviceLost):
        engine.step()


def test_a_shared_beginning_gives_the_same_answers_and_is_computed_once(runner: Runner) -> None:
    shared = [index * 5 % 256 for index in range(150)]
    requests = [request(f"r{index}", [*shared, index], max_tokens=8) for index in range(4)]
    breaking = Breaking(runner)
    engine = SmallEngine(breaking, tokens_per_step=64, prefix_tokens=1024)
    engine.submit(*requests)
    engine.finish()
    assert [engine.tokens(one.request_id) for one in requests] == [alone(runner, one) for one in requests]
    assert breaking.tokens == 151 + 3 * (151 - 128) + 4 * 7  # the others begin with four blocks of 32
    kept = runner.bytes_held()
    assert kept > 0
    again = request("again", [*shared, 1, 2, 3], max_tokens=8)
    engine.submit(again)
    engine.finish()
    assert engine.tokens("again") == alone(runner, again)
    engine.scheduler.limits = dataclasses.replace(engine.scheduler.limits, prefix_tokens=0)
    engine.submit(request("last", b"x", max_tokens=1))
    engine.finish()
    assert runner.bytes_held() == 0


def test_n_answers_to_one_prompt_share_its_computation_and_have_seeds_of_their_own(runner: Runner) -> None:
    one = request("n", [index % 256 for index in range(70)], max_tokens=6, temperature=2.0, seed=2**64 - 1)
    copies = one.copies(3)
    assert [copy.sampling.seed for copy in copies] == [2**64 - 1, 0, 1]
    engine = SmallEngine(runner, tokens_per_step=128, prefix_tokens=1024)
    engine.submit(*copies)
    engine.finish()
    answers = [engine.tokens(copy.request_id) for copy in copies]
    assert answers == [alone(runner, copy) for copy in copies]
    assert len({tuple(answer) for answer in answers}) == 3
    runner.reset()


def test_memory_for_few_makes_many_take_turns_and_changes_no_answer(runner: Runner) -> None:
    requests = [request(f"r{index}", [index + 1] * 40, max_tokens=60) for index in range(6)]
    engine = SmallEngine(runner, slots=6, kv_tokens=320, reserve=runner.reserve, prefix_tokens=128)
    engine.submit(*requests)
    engine.finish()
    assert [engine.tokens(one.request_id) for one in requests] == [alone(runner, one) for one in requests]
    runner.reset()


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
