"""One answer's text and calls, in the shapes of OpenAI's API."""

from collections.abc import Iterable

from millrace_server.answering import Piece, Whole
from millrace_server.openai.replies import AssistantMessage, Call, CallDelta, Delta, Function
from millrace_server.tools.calls import CallParser, Part, ToolCall


class AnswerCalls:
    def __init__(self, parser: CallParser, *, name: str) -> None:
        """`name` makes its calls' ids differ from everybody else's."""
        self._parser = parser
        self._name = name
        self._calls: list[CallDelta] = []

    async def deltas(self, piece: Piece) -> tuple[list[Delta], str | None]:
        """What is certain with this piece, and the finish reason if it is the last."""
        parts = self._parser.push(piece.text)
        if piece.finish_reason:
            parts += await self._parser.finish()
        deltas = [self._delta(part) for part in parts]
        return deltas, self._reason(piece.finish_reason)

    async def message(self, whole: Whole) -> tuple[AssistantMessage, str]:
        """And the finish reason."""
        parts = [*self._parser.push(whole.text), *await self._parser.finish()]
        for part in parts:
            self._delta(part)
        text = _text(parts)
        if not self._calls:
            return AssistantMessage(content=text), whole.finish_reason
        calls = [Call(id=call.id, function=call.function) for call in self._calls]
        return AssistantMessage(content=text or None, tool_calls=calls), self._reason(whole.finish_reason) or ""

    def _delta(self, part: Part) -> Delta:
        if isinstance(part, str):
            return Delta(content=part)
        number = len(self._calls)
        function = Function(name=part.name, arguments=part.arguments)
        self._calls.append(CallDelta(index=number, id=f"call_{self._name}-{number}", function=function))
        return Delta(tool_calls=[self._calls[-1]])

    def _reason(self, reason: str | None) -> str | None:
        return "tool_calls" if reason == "stop" and self._calls else reason


def _text(parts: Iterable[Part]) -> str:
    return "".join(part for part in parts if not isinstance(part, ToolCall))
