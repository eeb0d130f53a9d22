"""The soak on a tiny model; `e2e/test_engine_soak.py` runs it on the trained one."""

import random
from pathlib import Path

import fake_model
from small_engine import load
from soak import Soak


def test_hundreds_of_random_requests_answer_as_alone_and_leave_nothing(tmp_path: Path) -> None:
    chance = random.Random(3)
    shared = [chance.randrange(fake_model.BYTES) for _ in range(100)]
    prompts = [
        [*shared[: chance.randint(0, 100)], *(chance.randrange(fake_model.BYTES) for _ in range(chance.randint(1, 60)))] for _ in range(12)
    ]
    soak = Soak(load(fake_model.build(tmp_path)), prompts, max_tokens=24, eos_token_ids=[fake_model.EOS_TOKEN_ID], kinds=60)
    soak.run(600)
    fates = {fate.split(":")[0] for fate in soak.fates}
    assert fates == {"answered", "cancelled", "late", "poison", "refused"}
