"""The demo model's lessons: rules whose right answers a program can tell, split into training and held-out documents.

Pure and deterministic; no torch. A document is a prompt and the one right continuation, on which alone the model is trained. What
is held out is never a training document, so that answering it takes the rule:

- counting, words, alphabet: starts. No training document begins with a held-out start.
- sums: pairs. Where 7 + 5 is held out, 5 + 7 is too.
- questions: a subject in one of the wordings. Other wordings of the subject, and other subjects in the wording, are trained.
"""

import random
import string
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

SEED = 20_250_101


class Kind(StrEnum):
    counting = "counting"
    words = "words"
    alphabet = "alphabet"
    sums = "sums"
    questions = "questions"


@dataclass(frozen=True)
class Document:
    """A prompt and its continuation, after which the model ends its answer."""

    kind: Kind
    prompt: str
    """For questions the user's message, else the raw text."""
    answer: str
    weight: float = 1
    """How often it is trained, compared with others of its kind."""


@dataclass(frozen=True)
class Lessons:
    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


COUNT_LIMIT = 400
COUNT_STOP = 20
"""Counting ends at the next multiple."""
WORDS_STOP = 10
SUM_LIMIT = 49
TRAINED_ITEMS = 2
"""Items of a sequence that training gives as the prompt."""
ASKED_ITEMS = 5
"""Items of a sequence that a held-out prompt gives; 3 of words and letters."""
ALWAYS_HELD_OUT = 1
"""The demo's first prompt is `1 2 3 4 5`."""

UNITS = [
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
]
TENS = ["zero", "ten", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

SUBJECTS = {
    "Pod": "A Pod is the smallest thing that Kubernetes runs.",
    "Deployment": "A Deployment keeps equal Pods running.",
    "Service": "A Service gives Pods one name and one address.",
    "Node": "A Node is a machine on which Pods run.",
    "Namespace": "A Namespace divides a cluster among teams.",
    "ConfigMap": "A ConfigMap holds settings that Pods read.",
    "Secret": "A Secret holds passwords and keys.",
    "Job": "A Job runs Pods until their work is done.",
    "Lease": "A Lease tells which process leads.",
    "kubelet": "The kubelet starts the Pods of its Node.",
    "scheduler": "The scheduler chooses a Node for each Pod.",
    "operator": "An operator is a program that looks after objects.",
}
GREETINGS = ("", "Hello! ", "Please help: ", "In Kubernetes, ")
FORMS = (
    "what is a {}?",
    "what does the {} do?",
    "tell me what a {} is.",
    "explain the {}.",
    "why is there a {}?",
    "describe the {} to me.",
    "{}?",
    "can you say what the {} is for?",
)


def word(number: int) -> str:
    """0 … 99 in words."""
    if number < len(UNITS):
        return UNITS[number]
    tens, unit = divmod(number, 10)
    return TENS[tens] + (f"-{UNITS[unit]}" if unit else "")


def sequence(kind: Kind, items: list[str], *, given: int, weight: float = 1) -> Document:
    """The first `given` items are the prompt, the others the answer."""
    return Document(kind, " ".join(items[:given]), "".join(f" {item}" for item in items[given:]), weight)


def counting(start: int, *, given: int) -> Document:
    stop = (start // COUNT_STOP + 1) * COUNT_STOP
    few_digits = 4 if start < 10 else 2 if start < 100 else 1
    return sequence(Kind.counting, [str(number) for number in range(start, stop + 1)], given=given, weight=few_digits)


def words(start: int, *, given: int) -> Document:
    stop = (start // WORDS_STOP + 1) * WORDS_STOP
    return sequence(Kind.words, [word(number) for number in range(start, min(stop, 99) + 1)], given=given)


def addition(left: int, right: int) -> Document:
    return Document(Kind.sums, f"{left} + {right} =", f" {left + right}")


def question(subject: str, greeting: str, form: str) -> Document:
    asked = greeting + form.format(subject)
    return Document(Kind.questions, asked[0].upper() + asked[1:], SUBJECTS[subject])


def lessons() -> Lessons:
    """Every document, split."""
    chance = random.Random(SEED)
    training: list[Document] = []
    held_out: list[Document] = []

    def chosen(every: Iterable[int], share: float) -> set[int]:
        numbers = list(every)
        return set(chance.sample(numbers, round(len(numbers) * share)))

    # A held-out start too near the stop would leave its prompt without an answer.
    starts = [start for start in range(COUNT_LIMIT) if start % COUNT_STOP < COUNT_STOP - TRAINED_ITEMS]
    held = chosen([start for start in starts if start >= 10 and start % COUNT_STOP < COUNT_STOP - ASKED_ITEMS], 0.1) | {ALWAYS_HELD_OUT}
    training += [counting(start, given=TRAINED_ITEMS) for start in starts if start not in held]
    held_out += [counting(start, given=ASKED_ITEMS) for start in starts if start in held]

    starts = [start for start in range(90) if start % WORDS_STOP < WORDS_STOP - TRAINED_ITEMS + 1]
    held = chosen([start for start in starts if start >= 20 and start % WORDS_STOP < WORDS_STOP - 4], 0.12) | {ALWAYS_HELD_OUT}
    training += [words(start, given=TRAINED_ITEMS) for start in starts if start not in held]
    held_out += [words(start, given=3) for start in starts if start in held]

    for letters in (string.ascii_lowercase, string.ascii_uppercase):
        starts = list(range(len(letters) - 4))
        held = chosen(starts, 0.1)
        training += [sequence(Kind.alphabet, list(letters[start:]), given=TRAINED_ITEMS) for start in starts if start not in held]
        held_out += [sequence(Kind.alphabet, list(letters[start:]), given=3) for start in starts if start in held]

    pairs = [(left, right) for left in range(SUM_LIMIT + 1) for right in range(left, SUM_LIMIT + 1)]
    held = chosen(range(len(pairs)), 0.03) | {pairs.index((5, 7))}
    for index, (left, right) in enumerate(pairs):
        documents = [addition(left, right), addition(right, left)]
        (held_out if index in held else training).extend(documents)

    asked = [question(subject, greeting, form) for subject in SUBJECTS for greeting in GREETINGS for form in FORMS]
    held = chosen(range(len(asked)), 0.08)
    training += [document for index, document in enumerate(asked) if index not in held]
    held_out += [document for index, document in enumerate(asked) if index in held]
    return Lessons(tuple(training), tuple(held_out))
