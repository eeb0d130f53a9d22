"""A model's own parser of responses: `python -m millrace_server.tools.process`. Its patterns are somebody else's, hence confined."""

from typing import Any

import msgspec
from transformers.utils.chat_parsing import parse_response
from transformers.utils.chat_parsing.response_templates import ResponseTemplate, load_response_template

from millrace_server.confined.child import Refusal, serve
from millrace_server.tools.messages import Answered, Parsed

CPU_SECONDS = 2.0
MEMORY_BYTES = 1024 * 1024 * 1024


def main() -> None:
    description: ResponseTemplate | None = None

    def answer(line: bytes) -> str:
        nonlocal description
        try:
            if description is None:
                description = load_response_template(msgspec.json.decode(line, type=dict[str, Any]))
                return ""
            return parsed(msgspec.json.decode(line, type=Answered), description)
        except Exception as error:  # noqa: BLE001 - its patterns and parsers may fail in every way there is
            raise Refusal(f"{type(error).__name__}: {error}") from None

    serve(answer, cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES)


def parsed(answered: Answered, description: ResponseTemplate) -> str:
    message = parse_response(answered.text, description, prefix=answered.prompt, tools=answered.tools) if answered.text else {}
    functions = [call["function"] for call in message.get("tool_calls") or []]
    calls = [(function["name"], function.get("arguments") or {}) for function in functions]
    return msgspec.json.encode(Parsed(content=message.get("content") or "", calls=calls)).decode()


if __name__ == "__main__":
    main()
