"""The HTTP benchmark: its arithmetic on answers that the test makes up, and its mock engine behind the real front."""

import asyncio
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import httpx
import pytest

import fake_model
from http_benchmark import loads
from http_benchmark.client import Answer, Client
from http_benchmark.figures import Row, Soak, overload
from http_benchmark.front import MOCK, Server
from http_benchmark.picture import draw_overload, draw_soak

MEBIBYTE = 2**20


def answer(sent: float, *, status: int = 200, seconds: float = 1.0, retry_after: bool = True, failed: bool = False) -> Answer:
    return Answer(status, sent, sent + seconds, 0, retry_after=retry_after, failed=failed)


@pytest.mark.parametrize(
    ("rounds", "goal", "at_least", "met"),
    [
        ((1, 3, 2), 2, True, True),
        ((1, 3, 1.9), 2, True, False),
        ((3, 1, 2), 2, False, True),
        ((3, 1, 2.1), 2, False, False),
        ((1,), None, True, None),
    ],
)
def test_a_row_is_judged_by_its_median(rounds: tuple[float, ...], goal: float | None, *, at_least: bool, met: bool | None) -> None:
    assert Row(kind="k", what="w", unit="u", rounds=rounds, goal=goal, at_least=at_least).met is met


def test_good_answers_are_whole_and_in_time() -> None:
    answers = [
        *(answer(at) for at in (1.0, 1.5, 2.0)),
        answer(1.2, seconds=5),
        answer(1.3, failed=True),
        answer(1.4, status=504),
        *(answer(at, status=503, seconds=0.01) for at in (1.1, 2.9)),
        answer(0.5),
        answer(3.0),
    ]
    result = overload(answers, load=2, began=1, ended=3, deadline=4)
    assert (result.offered_per_second, result.good_per_second) == (4, 1.5)
    assert (result.refused_share, result.late_share) == (0.25, 0.375)
    assert result.refusal_p99_ms == pytest.approx(10)
    assert result.answer_p50_seconds == 1


def test_a_refusal_must_say_when_to_come_again() -> None:
    with pytest.raises(ValueError, match="1 of 2 refusals came without Retry-After"):
        overload([answer(1, status=503), answer(1, status=503, retry_after=False)], load=1, began=0, ended=2, deadline=1)


def test_growth_leaves_out_the_warm_up() -> None:
    sizes = [100] * 20 + [200] * 70 + [220] * 10
    soak = Soak(seconds=100, done={"answer": 1}, samples=tuple((float(at), {"front": size * MEBIBYTE}) for at, size in enumerate(sizes)))
    assert soak.growth("front") == pytest.approx(0.1)
    ElementTree.fromstring(draw_soak(soak, caption="a <fast> CPU"))


def test_the_picture_shows_each_load() -> None:
    loads_ = [overload([answer(1), answer(1, status=503)], load=each, began=0, ended=2, deadline=2) for each in (0.5, 3)]
    text = " ".join(ElementTree.fromstring(draw_overload(1, loads_, caption="a <fast> CPU")).itertext())
    assert "0.5 × capacity" in text
    assert "3 × capacity" in text


def test_the_mock_engine_gives_each_request_its_tokens(tmp_path: Path) -> None:
    model = fake_model.build(tmp_path / "model")
    body = {"model": "bench", "prompt": "hello", "max_tokens": 7, "ignore_eos": True, "temperature": 1}

    async def ask(port: int) -> list[Answer]:
        client = Client(port)
        answers = [await client.ask(loads.COMPLETIONS, {**body, "stream": True}), await client.ask("/health")]
        client.close()
        return answers

    with Server(model, tmp_path, engine=MOCK, step_seconds=0.02) as server:
        streamed, health = asyncio.run(ask(server.port))
        whole = httpx.post(f"http://127.0.0.1:{server.port}{loads.COMPLETIONS}", json=body, trust_env=False).json()
    assert (streamed.status, streamed.failed, health.status) == (200, False, 200)
    assert streamed.events > 1
    assert whole["usage"]["completion_tokens"] == 7
