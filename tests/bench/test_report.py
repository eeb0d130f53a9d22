"""Fixed results as table, JSON and picture."""

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from engine_benchmark import picture, report
from engine_benchmark.experiment import Goal, Ratio, Results, Row
from engine_benchmark.figures import Figures, Spread
from engine_benchmark.machine import Machine, cpu_model
from engine_benchmark.watch import Company

MACHINE = Machine(
    cpu="A <fast> CPU",
    cores=2,
    threads=2,
    dtype="bfloat16",
    model="Llama 135M",
    python="3.11.7",
    torch="2.15.0",
    transformers="5.23.0",
    revision="abc+",
    date="2026-11-23T01:02:03+00:00",
)
QUIET = Company(client_cores=0.01, idle_engines_cores=0.002, strangers_cores=0.03)


def figures(speed: float) -> Figures:
    return Figures(
        requests=8,
        output_tokens=512,
        seconds=512 / speed,
        output_tokens_per_second=speed,
        ttft_p50_seconds=0.25,
        ttft_p99_seconds=0.5,
        itl_p50_seconds=None,
        itl_p99_seconds=0.04,
    )


def row(engine: str, series: str, concurrency: int, speed: float) -> Row:
    rounds = [figures(speed * 0.9), figures(speed), figures(speed * 1.2)]
    return Row(kind="peers", engine=engine, series=series, concurrency=concurrency, figures=figures(speed), rounds=rounds)


def ratio(median: float, goal: Goal | None = None) -> Ratio:
    return Ratio(
        kind="peers",
        series="equal",
        concurrency=8,
        figure="output_tokens_per_second",
        above="millrace",
        below="transformers",
        spread=Spread(median=median, lowest=median - 1, highest=median + 1),
        goal=goal,
    )


def results(*ratios: Ratio) -> Results:
    rows = [
        row(engine, series, clients, speed)
        for series in ("equal", "mixed")
        for clients in (1, 8)
        for engine, speed in (("millrace", 400.0), ("transformers", 100.0))
    ]
    return Results(rows=rows, ratios=list(ratios))


def document(found: Results) -> dict[str, object]:
    return report.document(found, MACHINE, QUIET, rounds=3)


def test_the_document_is_json_with_machine_rows_and_ratios() -> None:
    found = json.loads(json.dumps(document(results(ratio(4.0, Goal(at_least=3))))))
    assert found["machine"]["cpu"] == "A <fast> CPU"
    assert (found["machine"]["rounds"], found["machine"]["client_cores"]) == (3, 0.01)
    first = found["rows"][0]
    assert (first["kind"], first["engine"], first["series"], first["concurrency"]) == ("peers", "millrace", "equal", 1)
    assert (first["output_tokens_per_second"], first["ttft_p99_seconds"], first["itl_p50_seconds"]) == (400.0, 0.5, None)
    assert [one["output_tokens_per_second"] for one in first["rounds"]] == [360.0, 400.0, 480.0]
    (only,) = found["ratios"]
    assert (only["median"], only["lowest"], only["highest"], only["goal"], only["met"]) == (4.0, 3.0, 5.0, "≥ 3", True)


def test_the_table_says_of_each_goal_whether_it_is_met() -> None:
    lines = report.table(results(ratio(4.0, Goal(at_least=3)), ratio(2.0, Goal(at_least=3)), ratio(2.0))).splitlines()
    assert [line.split()[-1] for line in lines[-3:]] == ["met", "MISSED", "1.00…3.00"]
    assert "400.0" in lines[1]
    assert "–" in lines[1]


@pytest.mark.parametrize(
    ("medians", "sentence"),
    [
        ((4.0, 5.0), "all 2 goals met"),
        ((4.0, 2.0), "1 of 2 goals met; MISSED: peers equal ×8 millrace / transformers = 2.00 (≥ 3)"),
    ],
)
def test_the_verdict_names_what_was_missed(medians: tuple[float, ...], sentence: str) -> None:
    assert report.verdict(results(*(ratio(median, Goal(at_least=3)) for median in medians))) == sentence


def test_the_picture_is_svg_with_a_bar_and_a_whisker_for_every_row() -> None:
    drawn = ElementTree.fromstring(picture.draw(document(results(ratio(4.0)))))
    kinds = [element.tag.rpartition("}")[2] for element in drawn.iter()]
    bars = kinds.count("rect") - 1 - 2 - 1  # the background, the legend, the ratio
    assert bars == len(results().rows)
    assert len([element for element in drawn.iter() if element.get("class") == "whisker"]) == bars
    texts = [element.text for element in drawn.iter() if element.text]
    assert "× 4.00" in texts
    assert any("A <fast> CPU" in text for text in texts)


def test_a_bar_twice_as_fast_is_twice_as_high() -> None:
    twice = Results(rows=[row("millrace", "equal", 1, 200.0), row("transformers", "equal", 1, 100.0)])
    drawn = ElementTree.fromstring(picture.draw(document(twice)))
    bars = [float(element.get("height", 0)) for element in drawn.iter() if element.tag.endswith("rect")][-2:]
    assert bars[0] / bars[1] == pytest.approx(2, abs=0.01)


def test_a_picture_without_peers_says_so() -> None:
    alone = Results(rows=[replace(row("millrace", "shared prefix", 1, 1.0), kind="prefix")])
    assert "the peers were not measured" in picture.draw(document(alone))


@pytest.mark.parametrize(("highest", "top"), [(0.5, 5), (5, 5), (5.1, 10), (26, 50), (480, 500), (501, 1000)])
def test_a_panel_ends_at_a_round_number_that_holds_its_bars(highest: float, top: float) -> None:
    assert picture.scale(highest)[0] == top


def test_a_cpu_that_its_hypervisor_calls_processor_is_known_by_its_numbers() -> None:
    text = "processor\t: 0\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: Intel(R) Xeon(R) Processor\n\nprocessor\t: 1\n"
    assert cpu_model(text) == "Intel(R) Xeon(R) Processor (family 6, model 207)"
    assert cpu_model("model name : Some CPU\n") == "Some CPU"


@pytest.mark.parametrize(
    ("company", "words"),
    [
        (QUIET, None),
        (replace(QUIET, strangers_cores=0.4), "THE MACHINE WAS BUSY: other processes took 0.40 cores"),
        (replace(QUIET, idle_engines_cores=0.9), "engines that were not measured took up to 0.90 cores"),
    ],
)
def test_figures_of_a_busy_machine_come_with_a_warning(company: Company, words: str | None) -> None:
    assert (company.warning is None) if words is None else (company.warning or "").startswith(words)
