"""Prompts that the demo model was never trained on, and what it must answer. Pure; the model's build fails when one is wrong.

A token is a byte, so greedy text after n tokens is exactly `prompt + answer[:n]`.
"""

from dataclasses import dataclass

from demo.data import Document, Kind, lessons
from demo.tokenizer import chat_prompt

SPARE_TOKENS = 4
"""Asked for beyond the answer's length: the model must end by itself."""
PER_KIND = 4


@dataclass(frozen=True)
class Question:
    """A held-out prompt, as a client sends it."""

    kind: Kind
    prompt: str
    answer: str
    """The whole of it; the model then ends."""

    @property
    def max_tokens(self) -> int:
        return len(self.answer) + SPARE_TOKENS

    def text(self, max_tokens: int) -> str:
        """What /api/v1/infer returns for this many tokens."""
        return self.prompt + self.answer[:max_tokens]


def asked(document: Document) -> Question:
    prompt = chat_prompt(document.prompt) if document.kind is Kind.questions else document.prompt
    return Question(document.kind, prompt, document.answer)


def _spread(questions: tuple[Question, ...]) -> tuple[Question, ...]:
    """PER_KIND of them, from the first to the last."""
    return questions[:: len(questions) // PER_KIND][:PER_KIND]


_HELD_OUT = lessons().held_out
COUNTING, WORDS, ALPHABET, SUMS, CHATS = (tuple(asked(each) for each in _HELD_OUT if each.kind is kind) for kind in Kind)
CHECKED = tuple(question for group in (COUNTING, WORDS, ALPHABET, SUMS) for question in _spread(group))
"""Raw prompts, whose answers tests compare; the first is `1 2 3 4 5`."""
SHOWN = (COUNTING[0], WORDS[0], next(question for question in SUMS if question.prompt == "7 + 5 ="))
"""What `make demo` asks."""
