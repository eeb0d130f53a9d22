"""One request's life in the engine: what was asked never changes, what was computed only grows."""

from dataclasses import dataclass, field
from typing import Any, Protocol

from millrace_server.engine.messages import Logprobs, Submit

INVALID_TOKEN = -1
"""What the runner answers instead of a token when a row's logits are not numbers."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The token that was chosen for a sequence: INVALID_TOKEN when its logits are not numbers, or none was allowed."""

    token: int
    logprobs: Logprobs | None = None


class TokenMask(Protocol):
    """Structured output: which tokens may come next. Asked before each token of a sequence, told of each one that was chosen."""

    @property
    def failure(self) -> str | None:
        """Why nothing may come next, when the mask itself is to blame."""

    def forbid(self, logits: Any) -> None:  # noqa: ANN401 - a torch.Tensor, which this module does not import
        """Set the logits [vocabulary] of the tokens that must not come next to -inf, in place."""

    def accept(self, token: int) -> bool:
        """The answer goes on with this token. Returns whether it is complete: nothing may follow."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt and the answer that grows behind it.

    `tokens` holds the prompt, then every token of the answer; the first `computed` of them are in the KV cache. A step computes some
    or all of the rest, and when it reaches the end it yields one more token. So a prompt and a single new token are the same
    thing of different length, and the scheduler needs no notion of phases.
    """

    request: Submit
    seed: int
    """Chooses the answer together with each token's position; given by the client or drawn once on arrival."""
    arrived: float
    """Monotonic time."""
    mask: TokenMask | None = None
    tokens: list[int] = field(init=False)
    computed: int = 0
    is_long: bool = False
    """Whether what must be computed before the first token takes more than a step."""
    block_keys: list[bytes] = field(default_factory=list)
    """Keys of the blocks of `tokens` hashed so far, see `prefixes`."""
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.request.prompt)

    @property
    def pending(self) -> int:
        """Tokens that must be computed before the next one can be sampled."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens of the answer so far."""
        return len(self.tokens) - len(self.request.prompt)

    @property
    def final_length(self) -> int:
        """Tokens that prompt and answer hold together at most."""
        return len(self.request.prompt) + self.request.max_tokens

    def accept(self, token: int, eos_token_ids: frozenset[int]) -> bool:
        """Append a sampled token, or end. Returns whether the token belongs to the answer (a stop token does not).

        Raises what the mask raises.
        """
        if token in self.request.stop_token_ids or (token in eos_token_ids and not self.request.ignore_eos):
            self.finish_reason = "stop"
            return False
        self.tokens.append(token)
        if self.mask and self.mask.accept(token):
            self.finish_reason = "stop"
        elif self.generated >= self.request.max_tokens:
            self.finish_reason = "length"
        return True
