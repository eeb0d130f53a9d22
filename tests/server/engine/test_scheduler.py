"""The scheduler's decisions, without a model: tables and properties over arbitrary histories."""

import random
from collections.abc import Iterable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_server.engine.messages import Output
from millrace_server.engine.plan import Chunk, Plan
from millrace_server.engine.prefixes import BLOCK_TOKENS, PrefixIndex
from millrace_server.engine.scheduler import Limits, Scheduler
from millrace_server.engine.sequence import INVALID_TOKEN, Choice, Sequence
from millrace_server.engine.share import LongPromptShare
from millrace_server.engine.waiting import AGEING_SECONDS, rank
from small_engine import request

EOS = 256
BESIDE = 2
"""Tokens of long prompts in a step in which others generate."""


def scheduler(
    *,
    slots: int = 4,
    tokens_per_step: int = 16,
    kv_tokens: int = 10_000,
    prefix_tokens: int = 0,
    company_seconds: float = 0,
    eos: Iterable[int] = (),
    stages: int = 1,
) -> Scheduler:
    limits = Limits(
        slots=slots, tokens_per_step=tokens_per_step, kv_tokens=kv_tokens, prefix_tokens=prefix_tokens, company_seconds=company_seconds
    )
    return Scheduler(limits, reserve=lambda tokens: tokens, share=LongPromptShare(most=BESIDE, stages=stages), eos_token_ids=eos)


def sequence(name: str, prompt: int | list[int] = 4, max_tokens: int = 3, *, arrived: float = 0, **fields: Any) -> Sequence:  # noqa: ANN401
    """`prompt` is its tokens, or how many."""
    tokens = [1] * prompt if isinstance(prompt, int) else prompt
    return Sequence(request(name, tokens, max_tokens=max_tokens, **fields), seed=0, arrived=arrived)


def lengths(plan: Plan) -> dict[str, int]:
    return {chunk.sequence.request.request_id: chunk.length for chunk in plan.chunks}


def commit(one: Scheduler, plan: Plan, *tokens: int) -> list[Output]:
    """One token per chunk that samples; 1 unless told."""
    sampling = [chunk for chunk in plan.chunks if chunk.samples]
    return one.commit(plan.chunks, [Choice(token) for token in tokens or [1] * len(sampling)])


def test_those_who_generate_come_first_and_prompts_share_the_rest_of_the_budget() -> None:
    one = scheduler(tokens_per_step=16)
    one.add(sequence("a"), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("b", 10), now=0)
    one.add(sequence("c", 10), now=0)
    assert lengths(one.schedule(now=0)) == {"a": 1, "b": 10, "c": 5}


def test_a_long_prompt_is_computed_in_chunks_and_samples_only_at_its_end() -> None:
    one = scheduler(tokens_per_step=16)
    one.add(sequence("long", 40), now=0)
    plans = []
    for _ in range(3):
        plans.append(one.schedule(now=0))
        commit(one, plans[-1])
    assert [(chunk.start, chunk.length, chunk.samples) for plan in plans for chunk in plan.chunks] == [
        (0, 16, False),
        (16, 16, False),
        (32, 8, False),  # by now the sampled token follows
    ]
    assert one.running[0].generated == 1


def test_a_finished_sequence_frees_its_slot_at_once() -> None:
    one = scheduler(slots=1)
    one.add(sequence("a", max_tokens=1), now=0)
    one.add(sequence("b"), now=0)
    commit(one, one.schedule(now=0))
    assert lengths(one.schedule(now=0)) == {"b": 4}


def test_a_cancelled_request_is_gone_wherever_it_was() -> None:
    one = scheduler(slots=1)
    one.add(sequence("runs"), now=0)
    one.add(sequence("waits"), now=0)
    commit(one, one.schedule(now=0))
    assert one.cancel("runs") is not None
    assert one.cancel("waits") is not None
    assert one.cancel("waits") is None
    assert one.is_idle
    assert one.occupied == 0


def test_a_deadline_ends_waiting_and_running_requests() -> None:
    one = scheduler(slots=1)
    one.add(sequence("runs", max_tokens=50, deadline=5), now=0)
    one.add(sequence("waits", deadline=5), now=0)
    commit(one, one.schedule(now=4.9))
    plan = one.schedule(now=5)
    assert [expired.request.request_id for expired in plan.expired] == ["runs", "waits"]
    assert not plan.chunks
    assert one.is_idle


def test_a_request_that_does_not_fit_the_cache_yet_is_not_overtaken() -> None:
    one = scheduler(kv_tokens=20)
    one.add(sequence("a", 4, 3), now=0)
    one.add(sequence("large", 10, 10), now=0)
    one.add(sequence("small", 1, 1), now=0)
    assert lengths(one.schedule(now=0)) == {"a": 4}


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it() -> None:
    one = scheduler(eos=[EOS])
    one.add(sequence("stops", ignore_eos=False), now=0)
    one.add(sequence("ignores"), now=0)
    plan = one.schedule(now=0)
    stops, ignores = commit(one, plan, EOS, EOS)
    assert (stops.tokens, stops.finish_reason) == ([], "stop")
    assert (ignores.tokens, ignores.finish_reason) == ([EOS], None)


def test_a_row_that_is_not_a_number_ends_only_its_own_request() -> None:
    one = scheduler()
    one.add(sequence("bad"), now=0)
    one.add(sequence("good"), now=0)
    bad, good = commit(one, one.schedule(now=0), INVALID_TOKEN, 7)
    assert bad.finish_reason == "error"
    assert bad.error is not None
    assert (good.tokens, good.finish_reason) == ([7], None)


def test_a_lone_request_after_a_quiet_spell_starts_at_once() -> None:
    one = scheduler(company_seconds=0.05)
    one.add(sequence("a"), now=0)
    assert lengths(one.schedule(now=0)) == {"a": 4}


def test_an_idle_engine_waits_for_as_many_as_came_together_last_time() -> None:
    one = scheduler(company_seconds=0.05)
    for name in "ab":
        one.add(sequence(name, max_tokens=1), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("c", max_tokens=1), now=9)
    plan = one.schedule(now=9.01)
    assert (plan.chunks, plan.wake_at) == ((), 9.05)
    one.add(sequence("d", max_tokens=1), now=9.02)
    assert lengths(one.schedule(now=9.02)) == {"c": 4, "d": 4}


def test_company_that_does_not_come_is_waited_for_once() -> None:
    one = scheduler(company_seconds=0.05)
    for name in "ab":
        one.add(sequence(name, max_tokens=1), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("c", max_tokens=1), now=9)
    assert one.schedule(now=9).wake_at == 9.05
    commit(one, one.schedule(now=9.05))
    one.add(sequence("d", max_tokens=1), now=10)
    assert lengths(one.schedule(now=10)) == {"d": 4}


def test_a_full_batch_does_not_wait_for_more_company_than_fits() -> None:
    one = scheduler(slots=2, company_seconds=0.05)
    for name in "abc":
        one.add(sequence(name, max_tokens=1), now=0)
    while not one.is_idle:
        commit(one, one.schedule(now=0))
    one.add(sequence("d"), now=9)
    one.add(sequence("e"), now=9)
    assert lengths(one.schedule(now=9)) == {"d": 4, "e": 4}


def test_who_outgrows_the_memory_makes_the_last_one_give_up_its_place_and_nobody_is_lost() -> None:
    one = scheduler(kv_tokens=100, tokens_per_step=100)
    for name, arrived in (("old", 0), ("young", 1)):
        one.add(sequence(name, 20, 60, arrived=arrived), now=arrived)
    plans = []
    while not one.is_idle:
        plans.append(one.schedule(now=1))
        commit(one, plans[-1])
    preempted = [each for plan in plans for each in plan.preempted]
    assert [each.request.request_id for each in preempted] == ["young"]
    restart = next(plan for plan in plans if any(chunk.start == 0 and chunk.length > 20 for chunk in plan.chunks))
    assert lengths(restart)["young"] == len(preempted[0].request.prompt) + 31  # computed again with what it had generated
    assert preempted[0].finish_reason == "length"
    assert preempted[0].generated == 60


def test_a_better_priority_is_admitted_first_and_age_makes_up_for_a_worse_one() -> None:
    one = scheduler(slots=1)
    one.add(sequence("background", priority=1, arrived=0), now=0)
    one.add(sequence("late", priority=0, arrived=AGEING_SECONDS + 1), now=AGEING_SECONDS + 1)
    one.add(sequence("early", priority=0, arrived=AGEING_SECONDS - 1), now=AGEING_SECONDS - 1)
    one.add(sequence("urgent", priority=-5, arrived=AGEING_SECONDS), now=AGEING_SECONDS)
    order = []
    while not one.is_idle:
        plan = one.schedule(now=0)
        order += [chunk.sequence.request.request_id for chunk in plan.chunks if chunk.start == 0]
        commit(one, plan)
    # "late" and "early" are of one priority and one tenant: in the order in which they were added.
    assert order == ["urgent", "background", "late", "early"]


def test_tenants_of_one_priority_take_turns_however_many_requests_one_of_them_sends() -> None:
    one = scheduler(slots=1)
    for index in range(4):
        one.add(sequence(f"flood{index}", max_tokens=1, tenant="flood"), now=0)
    for name in ("a", "b"):
        one.add(sequence(name, max_tokens=1, tenant=name), now=0)
    order = []
    while not one.is_idle:
        plan = one.schedule(now=0)
        order += list(lengths(plan))
        commit(one, plan)
    assert order == ["flood0", "a", "b", "flood1", "flood2", "flood3"]


def test_a_prompt_of_many_steps_yields_to_those_who_generate_and_a_short_one_does_not_wait_for_it() -> None:
    one = scheduler(tokens_per_step=16)
    one.add(sequence("generates", 4, 50), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("long", 40), now=0)
    one.add(sequence("short", 10), now=0)
    assert lengths(one.schedule(now=0)) == {"generates": 1, "long": BESIDE, "short": 10}


def test_a_prompt_of_many_steps_is_computed_stage_by_stage_where_the_runner_can() -> None:
    one = scheduler(tokens_per_step=16, stages=6)  # so a chunk is of BESIDE * 6 / 2 tokens, of which a step computes two stages
    one.add(sequence("generates", 4, 50), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("long", 20), now=0)
    seen = []
    for _ in range(9):
        plan = one.schedule(now=0)
        generating, long = plan.chunks
        assert (generating.length, long.samples) == (1, False)
        seen.append((long.start, long.length, *long.stages))
        commit(one, plan)
    assert seen == [(start, 6, begin, begin + 2, 6) for start in (0, 6, 12) for begin in (0, 2, 4)]
    assert one.running[1].generated == 0


def test_what_is_left_of_a_chunk_is_computed_at_once_when_nobody_generates_any_more() -> None:
    one = scheduler(tokens_per_step=16, stages=6)
    one.add(sequence("generates", 4, 50), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("long", 40), now=0)
    commit(one, one.schedule(now=0))
    one.cancel("generates")
    [chunk] = (plan := one.schedule(now=0)).chunks
    assert (chunk.start, chunk.length, *chunk.stages) == (0, 6, 2, 6, 6)
    commit(one, plan)
    assert lengths(one.schedule(now=0)) == {"long": 16}


def test_a_chunk_whose_step_fails_is_computed_again_from_where_it_was_and_a_lost_one_from_its_beginning() -> None:
    one = scheduler(tokens_per_step=16, stages=6)
    one.add(sequence("generates", 4, 50), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("long", 40), now=0)
    commit(one, one.schedule(now=0))
    first = one.schedule(now=0).chunks[1]
    assert one.schedule(now=0).chunks[1] == first
    assert first.stages == (2, 4, 6)
    one.start_over()
    for plan in (one.schedule(now=0), one.schedule(now=0)):
        assert all(chunk.stages.begin == 0 for chunk in plan.chunks)
        commit(one, plan)


def test_an_equal_beginning_is_computed_once_and_waited_for_while_it_is_computed() -> None:
    one = scheduler(tokens_per_step=64, prefix_tokens=1000)
    shared = [7] * 100
    one.add(sequence("first", [*shared, 1]), now=0)
    one.add(sequence("second", [*shared, 2]), now=0)
    for expected in ({"first": 64}, {"first": 37}):  # the second waits for all three blocks
        plan = one.schedule(now=0)
        assert lengths(plan) == expected
        commit(one, plan)
    plan = one.schedule(now=0)
    reuse = {chunk.sequence.request.request_id: (chunk.start, chunk.length, len(chunk.reuse)) for chunk in plan.chunks}
    assert reuse == {"first": (101, 1, 0), "second": (96, 5, 3)}


def test_who_waits_for_a_beginning_computes_it_when_the_other_one_leaves() -> None:
    one = scheduler(tokens_per_step=16, prefix_tokens=1000)
    one.add(sequence("first", [7] * 100), now=0)
    one.add(sequence("second", [7] * 100), now=0)
    plan = one.schedule(now=0)
    assert lengths(plan) == {"first": 16}
    commit(one, plan)
    one.cancel("first")
    assert lengths(one.schedule(now=0)) == {"second": 16}


def test_a_short_prompt_does_not_wait_for_a_long_one_that_begins_alike() -> None:
    one = scheduler(tokens_per_step=64, prefix_tokens=1000)
    one.add(sequence("generates", [1, 2], 50), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("long", [7] * 200), now=0)
    one.add(sequence("short", [7] * 60), now=0)
    assert lengths(one.schedule(now=0)) == {"generates": 1, "long": BESIDE, "short": 60}


def test_a_beginning_is_not_shared_between_tenants_nor_between_revisions() -> None:
    shared = [7] * 64
    one = scheduler(tokens_per_step=200, prefix_tokens=1000)
    for tenant in "ab":
        one.add(sequence(tenant, shared, tenant=tenant), now=0)
    assert lengths(one.schedule(now=0)) == {"a": 64, "b": 64}
    index, other = PrefixIndex(revision="one"), PrefixIndex(revision="two")
    assert index.completed(sequence("x", shared), start=0, end=64) != other.completed(sequence("x", shared), start=0, end=64)


def test_stored_beginnings_make_way_for_running_sequences() -> None:
    one = scheduler(kv_tokens=128, tokens_per_step=128, prefix_tokens=128)
    one.add(sequence("leaves something", 64, 1), now=0)
    commit(one, one.schedule(now=0))
    assert one.prefixes.tokens == 64
    one.add(sequence("needs room", 100, 20), now=0)
    plan = one.schedule(now=0)
    assert len(plan.forgotten) == 2
    assert one.prefixes.tokens == 0


def test_what_a_sequence_without_numbers_has_stored_is_forgotten() -> None:
    one = scheduler(tokens_per_step=64, prefix_tokens=1000)
    one.add(sequence("bad", 64), now=0)
    commit(one, one.schedule(now=0), INVALID_TOKEN)
    assert one.prefixes.tokens == 0
    assert len(one.schedule(now=0).distrusted) == 2


def test_a_long_prompt_stays_long_until_its_end() -> None:
    one = scheduler(tokens_per_step=16)
    one.add(sequence("generates", 4, 50), now=0)
    commit(one, one.schedule(now=0))
    one.add(sequence("long", 20), now=0)
    for _ in range(20 // BESIDE):
        plan = one.schedule(now=0)
        assert lengths(plan) == {"generates": 1, "long": BESIDE}
        commit(one, plan)


Arrivals = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.integers(1, 100),
            "answer": st.integers(1, 40),
            "kind": st.integers(0, 2),  # prompts of one kind begin alike
            "priority": st.integers(-1, 1),
            "tenant": st.sampled_from("ab"),
            "arrives": st.integers(0, 60),
            "cancelled": st.one_of(st.none(), st.integers(0, 60)),
            "deadline": st.one_of(st.none(), st.integers(1, 60)),
        }
    ),
    max_size=25,
)


class Memory:
    """What a runner would hold, checked against what each sequence is."""

    def __init__(self) -> None:
        self.blocks: dict[bytes, list[int]] = {}
        self.begun: dict[Sequence, Chunk] = {}

    def release(self, sequences: Iterable[Sequence]) -> None:
        for each in sequences:
            self.begun.pop(each, None)

    def compute(self, chunk: Chunk) -> None:
        each = chunk.sequence
        assert [token for key in chunk.reuse for token in self.blocks[key]] == each.tokens[: len(chunk.reuse) * BLOCK_TOKENS]
        begun = self.begun.pop(each, None)
        if chunk.stages.begin:
            assert begun
            assert (chunk.start, chunk.length, chunk.stages.begin, chunk.stages.all) == (begun.start, begun.length, *begun.stages[1:])
            assert not chunk.reuse
        else:
            assert begun is None
            assert chunk.start == (each.computed or len(chunk.reuse) * BLOCK_TOKENS)
        if not chunk.is_last_part:
            self.begun[each] = chunk
            return
        for index, key in chunk.keep:
            self.blocks[key] = each.tokens[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS]


@given(
    Arrivals,
    st.integers(1, 5),
    st.integers(10, 64),
    st.integers(140, 400),
    st.sampled_from([0, 64, 300]),
    st.sampled_from([1, 2, 30]),
    st.randoms(),
)
@settings(max_examples=300)
def test_every_history_ends_within_the_limits_and_leaves_nothing(
    arrivals: list[dict[str, Any]],
    slots: int,
    tokens_per_step: int,
    kv_tokens: int,
    prefix_tokens: int,
    stages: int,
    chance: random.Random,
) -> None:
    one = scheduler(slots=slots, tokens_per_step=tokens_per_step, kv_tokens=kv_tokens, prefix_tokens=prefix_tokens, stages=stages)
    memory = Memory()
    sequences = [
        sequence(
            f"r{index}",
            [each["kind"]] * each["prompt"],
            each["answer"],
            deadline=each["deadline"] or 1e9,
            priority=each["priority"],
            tenant=each["tenant"],
            arrived=each["arrives"],
        )
        for index, each in enumerate(arrivals)
    ]
    for step in range(20_000):
        for each, made in zip(arrivals, sequences, strict=True):
            if each["arrives"] == step:
                one.add(made, now=step)
            if each["cancelled"] == step:
                one.cancel(made.request.request_id)
        first = min(one.running, key=rank, default=None)
        plan = one.schedule(now=step)
        assert first not in plan.preempted
        assert sum(chunk.length for chunk in plan.chunks) <= tokens_per_step
        assert all(chunk.length > 0 for chunk in plan.chunks)
        assert len(one.running) <= slots
        assert one.prefixes.tokens <= prefix_tokens
        assert one.occupied + one.prefixes.tokens <= kv_tokens
        assert plan.chunks or not one.running
        for key in plan.distrusted:
            memory.blocks.pop(key, None)
        memory.release((*plan.expired, *plan.preempted))
        done = [chunk for chunk in plan.chunks if chance.random() < 0.9]  # the others' part of the step failed
        for chunk in done:
            memory.compute(chunk)
        one.commit(done, [Choice(INVALID_TOKEN if chance.random() < 0.02 else chance.randrange(3)) for chunk in done if chunk.samples])
        for key in plan.forgotten:
            memory.blocks.pop(key, None)
        if one.is_idle and step >= 60:
            break
    assert one.is_idle
    assert one.occupied == 0
    assert len(memory.blocks) * BLOCK_TOKENS >= one.prefixes.tokens
    assert not vars(one.prefixes)["_computing"]
    assert not vars(one)["_begun"]
    for each, made in zip(arrivals, sequences, strict=True):
        if each["cancelled"] is None and each["deadline"] is None and made.finish_reason != "error":
            assert (made.finish_reason, made.generated) == ("length", each["answer"])
