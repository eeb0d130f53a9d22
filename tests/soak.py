"""Random requests of every fate, against one engine: what each must answer is known from its run alone."""

import gc
import logging
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from millrace_server.engine.messages import Submit
from millrace_server.engine.plan import Chunk
from millrace_server.engine.quarantine import STRIKES
from millrace_server.engine.runner import Runner
from millrace_server.engine.sequence import Choice, Sequence
from small_engine import FAR, SmallEngine, request

STEP_SECONDS = 0.01
SLOTS = 12
MOST_WAITING = 30
PREFIX_TOKENS = 512


class FailsOnPoison:
    """The real runner; a step with a request of that name fails in the middle of the model, with half of its keys and values written."""

    def __init__(self, runner: Runner) -> None:
        self.release, self.forget, self.reset, self.is_sound = runner.release, runner.forget, runner.reset, runner.is_sound
        self._runner = runner
        self._is_poisoned = False
        layers = runner._model.get_decoder().layers
        layers[len(layers) // 2].register_forward_hook(self._fail)

    def run(self, chunks: tuple[Chunk, ...]) -> list[Choice]:
        self._is_poisoned = any(chunk.sequence.request.request_id.startswith("poison") for chunk in chunks)
        try:
            return self._runner.run(chunks)
        finally:
            self._is_poisoned = False

    def _fail(self, *_: object) -> None:
        if self._is_poisoned:
            raise ArithmeticError("poison")


@dataclass
class Expected:
    tokens: list[int]
    finish_reason: str


@dataclass
class Soak:
    """`prompts` are token ids; requests use them in all lengths, so that many share a beginning."""

    runner: Runner
    prompts: list[list[int]]
    max_tokens: int
    eos_token_ids: Iterable[int] = ()
    kinds: int = 200
    """Different requests; each of them runs alone once."""
    seed: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    """What became of the requests."""

    def __post_init__(self) -> None:
        self._chance = random.Random(self.seed)
        self._pool = [self._invent(index) for index in range(self.kinds)]
        self._alone = {one.request_id: self._run_alone(one) for one in self._pool}
        self._asked: dict[str, Submit] = {}
        longest = max(len(one.prompt) + one.max_tokens for one in self._pool)
        self.engine = SmallEngine(
            FailsOnPoison(self.runner),
            slots=SLOTS,
            tokens_per_step=64,
            kv_tokens=3 * self.runner.reserve(longest),
            max_length=longest,
            vocabulary=self.runner.facts.vocabulary,
            eos_token_ids=list(self.eos_token_ids),
            prefix_tokens=PREFIX_TOKENS,
            reserve=self.runner.reserve,
        )

    def run(self, count: int) -> None:
        """Send so many requests and step until all have ended; then check every answer and that nothing is left."""
        logging.disable(logging.ERROR)  # a kept record of an error keeps the sequences of its step alive
        try:
            self._run(count)
        finally:
            logging.disable(logging.NOTSET)
        self._check_answers()
        self._check_nothing_is_left()

    def _run(self, count: int) -> None:
        sent = 0
        cancels: dict[int, list[str]] = {}
        step = 0
        while sent < count or not self.engine.scheduler.is_idle or not self.engine.inbox.empty() or cancels:
            step += 1
            while sent < count and len(self.engine.scheduler.waiting) < MOST_WAITING and self._chance.random() < 0.6:
                one = self._send(sent)
                sent += 1
                if one.request_id.startswith("cancelled"):
                    cancels.setdefault(step + self._chance.randint(0, 40), []).append(one.request_id)
            for name in cancels.pop(step, []):
                self.engine.cancel(name)
            self.engine.now += STEP_SECONDS
            self.engine.step()

    def _invent(self, index: int) -> Submit:
        chance = self._chance
        prompt = chance.choice(self.prompts)
        sampled = chance.random() < 0.3
        return request(
            f"kind{index}",
            prompt[: chance.randint(1, len(prompt))] if chance.random() < 0.3 else prompt,
            max_tokens=chance.randint(1, self.max_tokens),
            temperature=0.7 if sampled else 0.0,
            top_p=0.9 if sampled else 1.0,
            repetition_penalty=1.1 if chance.random() < 0.1 else 1.0,
            seed=index,
            ignore_eos=chance.random() < 0.3,
            stop_token_ids=[chance.randrange(self.runner.facts.vocabulary)] if chance.random() < 0.2 else [],
        )

    def _run_alone(self, one: Submit) -> Expected:
        engine = SmallEngine(
            self.runner, max_length=1 << 20, vocabulary=self.runner.facts.vocabulary, eos_token_ids=list(self.eos_token_ids)
        )
        engine.submit(one)
        engine.finish()
        return Expected(engine.tokens(one.request_id), str(engine.finish_reason(one.request_id)))

    def _send(self, number: int) -> Submit:
        chance, kind = self._chance, self._chance.choice(self._pool)
        fate = chance.choices(("answered", "cancelled", "late", "poison", "refused"), (75, 10, 8, 2, 5))[0]
        one = msgspec.structs.replace(
            kind,
            request_id=f"{fate}-{number}-{kind.request_id}",
            deadline=self.engine.now + chance.uniform(0, 40 * STEP_SECONDS) if fate == "late" else FAR,
            prompt=self._prompt(kind.prompt, fate),
            priority=chance.randint(-1, 1),
        )
        self.engine.submit(one)
        self._asked[one.request_id] = one
        return one

    def _prompt(self, prompt: list[int], fate: str) -> list[int]:
        if fate == "refused":
            return [*prompt, -1]
        if fate == "poison":  # a quarantined request shall not be one that others send too
            return [*prompt[:-1], (prompt[-1] + 1) % self.runner.facts.vocabulary]
        return prompt

    def _check_answers(self) -> None:
        tokens: dict[str, list[int]] = {name: [] for name in self._asked}
        ends: dict[str, list[str]] = {name: [] for name in self._asked}
        ended: dict[str, int] = {}
        for number, step in enumerate(self.engine.steps):
            for output in step.outputs:
                tokens[output.request_id] += output.tokens
                ends[output.request_id] += [output.finish_reason] if output.finish_reason else []
                ended[output.request_id] = number
        failed: Counter[str] = Counter()
        for name in sorted(self._asked, key=lambda name: ended.get(name, 0)):
            fate, _, kind = name.split("-")
            alone = self._alone[kind]
            self.fates[f"{fate}: {ends[name]}"] += 1
            if ends[name] == ["quarantined"]:
                assert fate == "poison", name
                assert failed[kind] >= STRIKES, name
            elif fate in ("poison", "refused"):
                assert ends[name] == ["error"], name
                failed[kind] += fate == "poison"
            elif ends[name] in ([], ["deadline"]):
                assert fate == ("late" if ends[name] else "cancelled"), name
                assert tokens[name] == alone.tokens[: len(tokens[name])], name
            else:
                assert (tokens[name], ends[name]) == (alone.tokens, [alone.finish_reason]), name

    def _check_nothing_is_left(self) -> None:
        scheduler = self.engine.scheduler
        assert scheduler.occupied == 0
        assert scheduler.cap == SLOTS
        self.engine.step()  # what was forgotten last is dropped
        assert scheduler.prefixes.tokens <= PREFIX_TOKENS
        assert self.runner.bytes_held() == scheduler.prefixes.tokens * self.runner.bytes_per_token
        gc.collect()
        assert not [each for each in gc.get_objects() if type(each) is Sequence]
        self.runner.reset()
        assert self.runner.bytes_held() == 0
