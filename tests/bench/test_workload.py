"""What is asked is the same for every engine of a round, and new in the next."""

from engine_benchmark.workload import EQUAL, MIXED, VOCABULARY, with_prefixes


def test_the_same_seed_asks_the_same_and_another_one_something_else() -> None:
    assert MIXED.requests(8, seed="a") == MIXED.requests(8, seed="a")
    assert MIXED.requests(8, seed="a") != MIXED.requests(8, seed="b")


def test_no_prompt_is_asked_twice() -> None:
    prompts = [request.prompt for seed in "abc" for request in EQUAL.requests(32, seed=seed)]
    assert len(set(prompts)) == len(prompts)


def test_every_length_is_asked_equally_often() -> None:
    lengths = sorted((len(request.prompt), request.max_tokens) for request in MIXED.requests(8, seed="a"))
    assert lengths == sorted(2 * MIXED.lengths)


def test_tokens_are_of_the_vocabulary() -> None:
    tokens = {token for request in MIXED.requests(64, seed="a") for token in request.prompt}
    assert min(tokens) >= 0
    assert VOCABULARY / 2 < max(tokens) < VOCABULARY


def test_shared_prefixes_are_one_and_distinct_ones_are_many() -> None:
    for shared, different in ((True, 1), (False, 6)):
        requests = with_prefixes(6, prefix=20, rest=3, answer=2, shared=shared, seed="a")
        assert len({request.prompt[:20] for request in requests}) == different
        assert len({request.prompt for request in requests}) == 6
        assert {(len(request.prompt), request.max_tokens) for request in requests} == {(23, 2)}
