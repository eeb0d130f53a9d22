"""The scheduler's decisions, without a model: tables and properties over arbitrary histories."""

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st

from millrace_server.engine.scheduler import INVALID_TOKEN, Limits, Plan, Scheduler
from millrace_server.engine.sequence import Sequence
from small_engine import request

EOS = 256


def scheduler(
    *, slots: int = 4, tokens_per_step: int = 16, kv_tokens: int = 10_000, company_seconds: float = 0, eos: Iterable[int] = ()
) -> Scheduler:
    limits = Limits(slots=slots, tokens_per_step=tokens_per_step, kv_tokens=kv_tokens, company_seconds=company_seconds)
    return Scheduler(limits, reserve=lambda tokens: tokens, eos_token_ids=eos)


def sequence(name: str, prompt_tokens: int = 4, max_tokens: int = 3, *, deadline: float = 1e9, ignore_eos: bool = True) -> Sequence:
    return Sequence(request(name, [1] * prompt_tokens, max_tokens=max_tokens, deadline=deadline, ignore_eos=ignore_eos), seed=0, arrived=0)


def lengths(plan: Plan) -> dict[str, int]:
    return {chunk.sequence.request.request_id: chunk.length for chunk in plan.chunks}


def commit(one: Scheduler, plan: Plan, token: int = 1) -> None:
    one.commit(plan, [token for chunk in plan.chunks if chunk.samples])


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
    assert one.reserved == 0


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
    stops, ignores = one.commit(plan, [EOS, EOS])
    assert (stops.tokens, stops.finish_reason) == ([], "stop")
    assert (ignores.tokens, ignores.finish_reason) == ([EOS], None)


def test_a_row_that_is_not_a_number_ends_only_its_own_request() -> None:
    one = scheduler()
    one.add(sequence("bad"), now=0)
    one.add(sequence("good"), now=0)
    bad, good = one.commit(one.schedule(now=0), [INVALID_TOKEN, 7])
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


Arrivals = st.lists(
    st.tuples(
        st.integers(1, 40),  # prompt tokens
        st.integers(1, 12),  # max_tokens
        st.integers(0, 60),  # step of arrival
        st.one_of(st.none(), st.integers(0, 60)),  # step of cancellation
        st.one_of(st.none(), st.integers(1, 60)),  # step of the deadline
    ),
    max_size=25,
)


@given(Arrivals, st.integers(1, 5), st.integers(5, 40), st.integers(52, 120), st.sampled_from([0, 3]))
@settings(max_examples=200, deadline=None)
def test_every_history_ends_within_the_limits_in_order_of_arrival(
    arrivals: list[tuple[int, int, int, int | None, int | None]], slots: int, tokens_per_step: int, kv_tokens: int, company: int
) -> None:
    one = scheduler(slots=slots, tokens_per_step=tokens_per_step, kv_tokens=kv_tokens, company_seconds=company)
    sequences = {
        f"r{index}": sequence(f"r{index}", prompt, answer, deadline=1e9 if deadline is None else deadline)
        for index, (prompt, answer, _, _, deadline) in enumerate(arrivals)
    }
    added: list[str] = []
    started: list[str] = []
    cancelled: set[str] = set()
    for step in range(2_000):
        for index, (_, _, arrives, leaves, _) in enumerate(arrivals):
            name = f"r{index}"
            if arrives == step:
                one.add(sequences[name], now=step)
                added.append(name)
            if leaves == step and one.cancel(name):
                cancelled.add(name)
        plan = one.schedule(now=step)
        assert sum(chunk.length for chunk in plan.chunks) <= tokens_per_step
        assert len(one.running) <= slots
        assert one.reserved == sum(running.final_length for running in one.running) <= kv_tokens
        generating = [running for running in one.running if running.generated]
        assert {chunk.sequence for chunk in plan.chunks} >= set(generating)
        started += [chunk.sequence.request.request_id for chunk in plan.chunks if chunk.start == 0]
        commit(one, plan)
        if one.is_idle and step >= 60:
            break
    assert one.is_idle
    assert one.reserved == 0
    assert started == [name for name in added if name in set(started)]
    for name, each in sequences.items():
        assert (each.finish_reason is None) == (name in cancelled)
        if each.finish_reason == "length":
            assert each.generated == each.request.max_tokens
            assert each.computed == len(each.tokens) - 1
