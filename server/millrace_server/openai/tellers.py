"""From the pieces of the answers to replies: whole, or as the events of a stream."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import UnsetType

from millrace_server.answer import WrittenToken
from millrace_server.answering import Answers, Piece, Whole
from millrace_server.openai.calls import AnswerCalls
from millrace_server.openai.logprobs import chat_logprobs, completion_logprobs
from millrace_server.openai.questions import Manner
from millrace_server.openai.replies import (
    AssistantMessage,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprobs,
    ChunkChoice,
    Completion,
    CompletionChoice,
    Delta,
    Usage,
)
from millrace_server.spelling import Spelling
from millrace_server.tools.calls import CallParser


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is the same in a reply and in each event of its stream."""

    id: str
    created: int
    model: str
    system_fingerprint: str


def usage(answers: Answers) -> Usage:
    prompt, completion = answers.prompt_tokens, answers.tokens
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


@dataclass(frozen=True, kw_only=True)
class ChatTeller:
    head: Head
    manner: Manner
    spelling: Spelling
    call_parser: Callable[[], CallParser] | None = None
    """For one answer, when the model has tools."""

    async def whole(self, answers: Answers) -> ChatCompletion:
        choices = [await self._choice(index, whole) for index, whole in enumerate(await answers.whole())]
        return ChatCompletion(**vars(self.head), choices=choices, usage=usage(answers))

    async def events(self, answers: Answers) -> AsyncGenerator[ChatChunk, None]:
        introduced: set[int] = set()
        calls: dict[int, AnswerCalls] = {}
        async for piece in answers:
            if self.call_parser and piece.index not in calls:
                calls[piece.index] = self._calls(self.call_parser, piece.index)
            deltas, finish_reason = [Delta(content=piece.text)] if piece.text else [], piece.finish_reason
            if piece.index in calls:
                deltas, finish_reason = await calls[piece.index].deltas(piece)
            if not (deltas or piece.tokens or finish_reason):
                continue
            if piece.index not in introduced:
                introduced.add(piece.index)
                yield self._chunk([ChunkChoice(index=piece.index, delta=Delta(role="assistant", content=""))], self.manner.no_usage)
            for number, delta in enumerate(deltas or [Delta()]):
                is_last = number + 1 >= len(deltas)
                logprobs = self._logprobs(piece.tokens if is_last else [])
                reason = finish_reason if is_last else None
                choice = ChunkChoice(index=piece.index, delta=delta, logprobs=logprobs, finish_reason=reason)
                yield self._chunk([choice], self.manner.no_usage)
        if self.manner.has_usage_event:
            yield self._chunk([], usage(answers))

    async def _choice(self, index: int, whole: Whole) -> ChatChoice:
        message, finish_reason = AssistantMessage(content=whole.text), whole.finish_reason
        if self.call_parser:
            message, finish_reason = await self._calls(self.call_parser, index).message(whole)
        return ChatChoice(index=index, message=message, logprobs=self._logprobs(whole.tokens), finish_reason=finish_reason)

    def _calls(self, call_parser: Callable[[], CallParser], index: int) -> AnswerCalls:
        return AnswerCalls(call_parser(), name=f"{self.head.id.removeprefix('chatcmpl-')}-{index}")

    def _chunk(self, choices: list[ChunkChoice], used: Usage | UnsetType | None) -> ChatChunk:
        return ChatChunk(**vars(self.head), choices=choices, usage=used)

    def _logprobs(self, tokens: Sequence[WrittenToken]) -> ChatLogprobs | None:
        return None if self.manner.top_logprobs is None else chat_logprobs(tokens, self.spelling)


@dataclass(frozen=True, kw_only=True)
class CompletionTeller:
    head: Head
    manner: Manner
    spelling: Spelling
    echoes: Mapping[int, str]
    """What goes in front of each answer's text."""

    async def whole(self, answers: Answers) -> Completion:
        pieces = [Piece(index, whole.text, whole.tokens, whole.finish_reason) for index, whole in enumerate(await answers.whole())]
        choices = [self._choice(piece, self.echoes.get(piece.index, "")) for piece in pieces]
        return Completion(**vars(self.head), choices=choices, usage=usage(answers))

    async def events(self, answers: Answers) -> AsyncGenerator[Completion, None]:
        echoes = dict(self.echoes)
        async for piece in answers:
            if piece.says_something():
                choice = self._choice(piece, echoes.pop(piece.index, ""))
                yield Completion(**vars(self.head), choices=[choice], usage=self.manner.no_usage)
        if self.manner.has_usage_event:
            yield Completion(**vars(self.head), choices=[], usage=usage(answers))

    def _choice(self, piece: Piece, echo: str) -> CompletionChoice:
        logprobs = None if self.manner.top_logprobs is None else completion_logprobs(piece.tokens, self.spelling)
        return CompletionChoice(index=piece.index, text=echo + piece.text, logprobs=logprobs, finish_reason=piece.finish_reason)
