"""Log probabilities in the two shapes of OpenAI's API."""

from collections.abc import Iterable, Sequence

from millrace_server.answer import LEAST_LOGPROB, WrittenToken
from millrace_server.openai.replies import ChatLogprobs, CompletionLogprobs, LikelyToken, TokenLikelihood
from millrace_server.spelling import Spelling


def chat_logprobs(tokens: Iterable[WrittenToken], spelling: Spelling) -> ChatLogprobs:
    def likely(token: int, logprob: float) -> LikelyToken:
        written = spelling.of(token)
        return LikelyToken(token=name(written), logprob=max(logprob, LEAST_LOGPROB), bytes=list(written))

    def likelihood(token: WrittenToken) -> TokenLikelihood:
        chosen = likely(token.token, token.likelihood.logprob)
        top = [likely(*other) for other in token.likelihood.top]
        return TokenLikelihood(token=chosen.token, logprob=chosen.logprob, bytes=chosen.bytes, top_logprobs=top)

    return ChatLogprobs(content=[likelihood(token) for token in tokens])


def completion_logprobs(tokens: Sequence[WrittenToken], spelling: Spelling) -> CompletionLogprobs:
    def top(token: WrittenToken) -> dict[str, float]:
        """The likeliest tokens by name, and the chosen one. Of two with one name the likelier counts."""
        named: dict[str, float] = {}
        for other, logprob in [*token.likelihood.top, (token.token, token.likelihood.logprob)]:
            named.setdefault(name(spelling.of(other)), max(logprob, LEAST_LOGPROB))
        return named

    return CompletionLogprobs(
        tokens=[name(spelling.of(token.token)) for token in tokens],
        token_logprobs=[max(token.likelihood.logprob, LEAST_LOGPROB) for token in tokens],
        top_logprobs=[top(token) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def name(written: bytes) -> str:
    """The text, or for a part of a character its bytes, spelt out as OpenAI does."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)
