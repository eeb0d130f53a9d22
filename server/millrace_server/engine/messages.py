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


class Submit(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Front → engine: a validated request. The engine answers with Outputs until one has a finish_reason."""

    request_id: str
    prompt: list[int]
    """Token ids, at least one; prompt + max_tokens fits the model's limit (the front has checked)."""
    max_tokens: int
    temperature: float
    """0 means greedy."""
    top_p: float
    seed: int | None = None
    stop_token_ids: list[int] = []
    ignore_eos: bool = False
    deadline: float
    """Monotonic time after which the request ends with finish_reason "deadline"."""
    tenant: str = ""
    priority: int = 0


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


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """One request's share of a step."""

    request_id: str
    tokens: list[int]
    finish_reason: str | None = None
    """None while it runs; "stop" (eos or stop token, which is not in `tokens`), "length", "deadline" or "error"."""
    error: str | None = None
    """A sentence for the client when finish_reason is "error"."""


class Step(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Engine → front: what one step produced. Also sent every second while idle, as a heartbeat."""

    outputs: list[Output]
    running: int
    waiting: int


class Failed(msgspec.Struct, tag=True, frozen=True, kw_only=True):
    """Engine → front, then exit: why the engine cannot serve (a bad model, no memory)."""

    stage: str
    cause: str
    """A CamelCase word, such as ModelNotFound, UnsupportedArchitecture, OutOfMemory, CUDAUnavailable."""
    hint: str
    """A sentence with the next step."""


FromFront = Submit | Cancel
FromEngine = Progress | Ready | Step | Failed
