"""Compiles schemas to see whether they do: `python -m millrace_server.schemas.process`, each line a schema as a JSON string.

Its vocabulary are the single bytes: what a schema costs hardly depends on the tokens.
"""

import msgspec
from llguidance import LLTokenizer, TokenizerWrapper

from millrace_server.confined.child import Refusal, serve
from millrace_server.engine.grammar import BadGrammar, Grammars

CPU_SECONDS = 0.5
"""Usual schemas take a hundredth of it. In the engine this is what everybody else's schemas wait."""
MEMORY_BYTES = 512 * 1024 * 1024
BYTES = 256


class _Bytes:
    """A tokenizer, as the library asks for one."""

    tokens = (*(bytes([byte]) for byte in range(BYTES)), b"<end>")
    eos_token_id = BYTES
    bos_token_id = None
    special_token_ids = (BYTES,)

    def __call__(self, text: bytes) -> list[int]:
        return list(text)


def main() -> None:
    grammars = Grammars(LLTokenizer(TokenizerWrapper(_Bytes())))

    def answer(line: bytes) -> str:
        try:
            allowed = grammars.compile(msgspec.json.decode(line, type=str)).allowed()
        except BadGrammar as error:
            raise Refusal(str(error)) from None
        if not any(allowed):
            raise Refusal("no JSON satisfies it")
        return ""

    serve(answer, cpu_seconds=CPU_SECONDS, memory_bytes=MEMORY_BYTES)


if __name__ == "__main__":
    main()
