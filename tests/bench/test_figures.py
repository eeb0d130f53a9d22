"""Percentiles, latencies and paired ratios."""

import pytest

from engine_benchmark.figures import Figures, Timeline, measure, median, paired, percentile


def timeline(sent: float, *times: float) -> Timeline:
    return Timeline(sent, [(time, 1) for time in times])


def figures(tokens_per_second: float, **fields: float | None) -> Figures:
    defaults = {"ttft_p50_seconds": 1.0, "ttft_p99_seconds": 1.0, "itl_p50_seconds": None, "itl_p99_seconds": None, **fields}
    return Figures(requests=1, output_tokens=1, seconds=1.0, output_tokens_per_second=tokens_per_second, **defaults)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([7], 0.99, 7), ([3, 1, 2], 0.5, 2), ([1, 2, 3, 4], 0.5, 2.5), ([0, 10], 0.99, 9.9), ([1, 2, 3], 1, 3), ([1, 2, 3], 0, 1)],
)
def test_a_percentile_lies_between_its_neighbours(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == pytest.approx(expected)


def test_no_values_have_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_a_run_lasts_from_the_first_request_to_the_last_token() -> None:
    run = measure([timeline(10, 11, 12), timeline(10.5, 11, 14)])
    assert (run.seconds, run.output_tokens, run.output_tokens_per_second) == (4, 4, 1)
    assert (run.ttft_p50_seconds, run.itl_p50_seconds) == (0.75, 2)
    assert run.itl_p99_seconds == pytest.approx(2.98)


def test_tokens_that_arrive_together_are_all_counted() -> None:
    assert measure([Timeline(0, [(1, 3), (2, 1)])]).output_tokens == 4


def test_answers_of_one_token_have_no_latency_between_tokens() -> None:
    run = measure([timeline(0, 1), timeline(0, 2)])
    assert (run.itl_p50_seconds, run.itl_p99_seconds) == (None, None)
    assert median([run, run]).itl_p50_seconds is None


def test_only_gaps_that_end_in_the_window_are_counted() -> None:
    assert timeline(0, 1, 2, 4, 8).gaps(since=2, until=4) == [1, 2]


def test_a_ratio_pairs_figures_of_one_round_so_that_a_drifting_machine_cancels_out() -> None:
    ours = [figures(10), figures(20), figures(40)]
    theirs = [figures(5), figures(10), figures(10)]
    ratio = paired(ours, theirs, "output_tokens_per_second")
    assert (ratio.median, ratio.lowest, ratio.highest) == (2, 2, 4)


def test_rounds_of_different_number_are_not_paired() -> None:
    with pytest.raises(ValueError, match="zip"):
        paired([figures(1)], [figures(1), figures(1)], "output_tokens_per_second")


def test_each_figure_has_its_own_median() -> None:
    result = median([figures(1, ttft_p50_seconds=9), figures(2, ttft_p50_seconds=7), figures(3, ttft_p50_seconds=8)])
    assert (result.output_tokens_per_second, result.ttft_p50_seconds) == (2, 8)
