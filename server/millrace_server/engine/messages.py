"""What front and engine say to each other over their Unix socket.

Frames are a 4-byte big-endian length and one msgpack-encoded message (msgspec, tagged by type); a frame above MAX_FRAME_BYTES
ends the connection. Nothing is ever unpickled. The engine speaks in token ids only: text (tokenizer, templates, stop strings)
lives in the front, so that a step never waits for it.

Times are `time.monotonic()` seconds: on Linux one clock for all processes of a machine.
"""

import struct

import msgspec

MAX_FRAME_BYTES = 64 * 1024 * 1024
LENGTH = struct.Struct(">I")
MOST_LOGPROBS = 20
"""Likeliest tokens that are reported beside the chosen one."""
MOST_LISTED_TOKENS = 1024
"""Each is looked at in every step."""


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How a request's tokens are chosen from the model's logits, in the order in which it is applied. Every default changes nothing."""

    repetition_penalty: float = 1.0
    """Divides the positive logits (multiplies the negative ones) of every token that the prompt or the answer holds (CTRL, arXiv
    1909.05858)."""
    presence_penalty: float = 0.0
    """Subtracted once from the logits of every token that the answer holds."""
    frequency_penalty: float = 0.0
    """Subtracted from a token's logit as often as the answer holds it."""
    logit_bias: dict[int, float] = {}
    """Token id → what is added to its logit."""
    min_tokens: int = 0
    """Neither eos nor a stop token ends the answer, nor is one sampled, before it has so many tokens."""
    temperature: float = 0.0
    """0 means greedy: the likeliest token, and nothing below is looked at."""
    top_k: int = 0
    """Only the so many likeliest tokens; 0 means all."""
    min_p: float = 0.0
    """Only tokens at least so likely, as a share of the likeliest one's probability."""
    top_p: float = 1.0
    """Only the fewest likeliest tokens whose probabilities reach this sum."""
    seed: int | None = None
    """The same seed gives the same answer. None: drawn by the engine."""
    logprobs: int | None = None
    """Report each token's log probability and that of the so many likeliest ones, of the logits as they are before temperature and
    cuts but after penalties, bias and mask. None: nothing."""
    schema: str | None = None
    """JSON Schema: the answer is JSON that it accepts, and ends with it. None: any text."""


class Submit(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Front → engine: a validated request. The engine answers with Outputs until one has a finish_reason."""

    request_id: str
    prompt: list[int]
    """Token ids, at least one; prompt + max_tokens fits the model's limit (the front has checked)."""
    max_tokens: int
    sampling: Sampling = Sampling()
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    deadline: float
    """Monotonic time after which the request ends with finish_reason "deadline"."""
    tenant: str = ""
    """Requests of one priority are taken from the tenants in turn; prefixes are shared within a tenant only."""
    priority: int = 0
    """Lower goes first, until age makes up for it."""

    def copies(self, n: int) -> list["Submit"]:
        """`n` answers to one prompt: n requests, whose prompt is computed once. Seeds follow one another when one is given."""
        seed = self.sampling.seed
        return [
            msgspec.structs.replace(
                self,
                request_id=f"{self.request_id}#{index}",
                sampling=self.sampling if seed is None else msgspec.structs.replace(self.sampling, seed=(seed + index) % 2**64),
            )
            for index in range(n)
        ]


class Cancel(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Front → engine: the client is gone; frees the slot at the next step. No Output follows."""

    request_id: str


class Progress(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Engine → front: the load advances. `done` of `total` units (bytes, tensors, tokens)."""

    stage: str
    done: int
    total: int


class Ready(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Engine → front: the warm-up generated a token; requests are served from now on."""

    device: str
    dtype: str
    slots: int
    """Requests that run at once."""
    max_length: int
    """Tokens per request, prompt and answer together."""
    vocabulary: int
    eos_token_ids: list[int]
    revision: str
    """As people name it: a commit, a branch, or the digest."""
    digest: str
    """Of the model's files. A branch may move and a note may be stale: what was answered by these files is known by this alone."""
    kv_tokens: int = 0
    """Tokens of KV cache for all requests together."""
    block_tokens: int = 0
    """Tokens of a block that prompts may have in common; 0: nothing is shared."""
    no_schemas: str | None = None
    """Why this model cannot answer by a schema; None when it can."""


class Logprobs(msgspec.Struct, frozen=True):
    """How likely a token of the answer was, and which others were likely. Natural logarithms."""

    logprob: float
    top: list[tuple[int, float]]
    """The likeliest token ids with theirs, best first."""


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One request's share of a step."""

    request_id: str
    tokens: list[int]
    logprobs: list[Logprobs] = []
    """One per token when the request asked for them, else empty."""
    finish_reason: str | None = None
    """None while it runs; "stop" (eos or stop token, which is not in `tokens`), "length", "deadline", "error" or "quarantined"."""
    error: str | None = None
    """A sentence for the client when finish_reason is "error" or "quarantined"."""


class Step(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Engine → front: what one step produced. Also sent every second while idle, as a heartbeat."""

    outputs: list[Output]
    running: int
    waiting: int
    slots: int
    """Requests that may run at once now."""
    kv_usage: float = 0.0
    """Share of the KV cache that running requests take."""
    preemptions: int = 0
    """Since the engine's start, like the two below."""
    prefix_queries: int = 0
    """Tokens of prompts for which stored blocks were looked up."""
    prefix_hits: int = 0
    """Tokens in the blocks that were found."""


class Failed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Engine → front, then exit: why the engine cannot serve (a bad model, no memory)."""

    stage: str
    cause: str
    """A CamelCase word, such as ModelNotFound, UnsupportedArchitecture, OutOfMemory, CUDAUnavailable."""
    hint: str
    """A sentence with the next step."""


FromFront = Submit | Cancel
FromEngine = Progress | Ready | Step | Failed
