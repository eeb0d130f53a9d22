"""The engine alone, with the trained demo model: thousands of requests with every fate, each answered as it is alone."""

from demo import model, prompts
from demo.tokenizer import build
from small_engine import load
from soak import Soak


def test_random_requests_with_cancels_deadlines_stops_and_errors_answer_as_alone(long: bool) -> None:
    runner = load(model.folder())
    tokenizer = build()
    asked = [tokenizer.encode(question.prompt).ids for question in prompts.CHECKED]
    soak = Soak(runner, asked, max_tokens=24, eos_token_ids=runner.facts.eos_token_ids, kinds=200 if long else 15)
    soak.run(10_000 if long else 120)
    print(soak.fates)
