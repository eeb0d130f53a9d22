"""The demo model's lessons: rules whose right answers a program can tell, split into training and held-out documents.

Pure and deterministic; no torch. A document is a prompt and the one right continuation; the model is trained on the continuation
only. What is held out never occurs as a training document, so that answering it takes the rule and not memory:

- counting, words, alphabet: the starts (a held-out start is never the first item of a training document);
- sums: unordered pairs (neither 7 + 5 nor 5 + 7 is trained when one of them is held out);
- questions: a subject in one of the wordings (the other wordings of that subject are trained).
"""

import random
import string
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

SEED = 20_250_101
COUNT_LIMIT = 400
COUNT_STOP = 50
WORDS_LIMIT = 100
WORDS_STOP = 10
SUM_LIMIT = 20

UNITS = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen".split()
TENS = "zero ten twenty thirty forty fifty sixty seventy eighty ninety".split()


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


@dataclass(frozen=True)
class Lessons:
    training: tuple[Document, ...]
    held_out: tuple[Document, ...]


SUBJECTS = {
    "Pod": "A Pod is the smallest unit that Kubernetes runs: containers that share a network.",
    "Deployment": "A Deployment keeps a number of equal Pods running and replaces them step by step.",
    "Service": "A Service gives a changing set of Pods one name and one address.",
    "Node": "A Node is a machine on which Pods run.",
    "Namespace": "A Namespace divides a cluster, so that teams can use the same names.",
    "ConfigMap": "A ConfigMap holds settings that Pods read.",
    "Secret": "A Secret holds passwords and keys apart from the settings.",
    "Job": "A Job runs Pods until their work is done.",
    "Lease": "A Lease tells which process leads.",
    "kubelet": "The kubelet starts the Pods of its Node.",
    "scheduler": "The scheduler chooses a Node for each Pod.",
    "operator": "An operator is a program that keeps objects as their owner described them.",
}
WORDINGS = (
    "What is a {}?",
    "What is a {} in Kubernetes?",
    "Tell me what a {} is.",
    "Explain the {}.",
    "Please explain the {} to me.",
    "What does a {} do?",
    "Can you describe a {}?",
    "What is the use of a {}?",
)


def word(number: int) -> str:
    """0 … 100 in words."""
    if number == 100:
        return "one hundred"
    if number < 20:
        return UNITS[number]
    tens, unit = divmod(number, 10)
    return TENS[tens] + (f"-{UNITS[unit]}" if unit else "")


def sequence(kind: Kind, items: list[str], given: int) -> Document:
    """The first `given` items are the prompt, the rest the answer."""
    return Document(kind, " ".join(items[:given]), "".join(f" {item}" for item in items[given:]))


def counting(start: int, given: int = 2) -> Document:
    """From `start` to the next multiple of COUNT_STOP that is not in the prompt."""
    stop = ((start + given - 1) // COUNT_STOP + 1) * COUNT_STOP
    return sequence(Kind.counting, [str(number) for number in range(start, stop + 1)], given)


def words(start: int, given: int = 2) -> Document:
    stop = ((start + given - 1) // WORDS_STOP + 1) * WORDS_STOP
    return sequence(Kind.words, [word(number) for number in range(start, stop + 1)], given)


def alphabet(start: int, letters: str, given: int = 2) -> Document:
    return sequence(Kind.alphabet, list(letters[start:]), given)


def addition(left: int, right: int) -> Document:
    return Document(Kind.sums, f"{left} + {right} =", f" {left + right}")


def question(subject: str, wording: str) -> Document:
    return Document(Kind.questions, wording.format(subject), SUBJECTS[subject])


def lessons() -> Lessons:
    """Everything, split. The prompt of a held-out sequence has five items (three letters), of a training one two."""
    chance = random.Random(SEED)
    training: list[Document] = []
    held_out: list[Document] = []

    def split(name: Kind, every: list[int], share: float) -> Iterator[tuple[int, bool]]:
        del name
        chosen = set(chance.sample(every, round(len(every) * share)))
        for one in every:
            yield one, one in chosen

    for start, held in split(Kind.counting, list(range(COUNT_LIMIT)), 0.15):
        if held or start == 1:
            held_out.append(counting(start, given=5))
        else:
            training.append(counting(start))
    for start, held in split(Kind.words, list(range(WORDS_LIMIT - 2)), 0.15):
        (held_out if held else training).append(words(start, given=3 if held else 2))
    for letters in (string.ascii_lowercase, string.ascii_uppercase):
        for start, held in split(Kind.alphabet, list(range(22)), 0.2):
            (held_out if held else training).append(alphabet(start, letters, given=3 if held else 2))
    pairs = [(left, right) for left in range(SUM_LIMIT + 1) for right in range(left, SUM_LIMIT + 1)]
    for index, held in split(Kind.sums, list(range(len(pairs))), 0.1):
        left, right = pairs[index]
        target = held_out if held else training
        target.append(addition(left, right))
        if left != right:
            target.append(addition(right, left))
    combinations = [(subject, wording) for subject in SUBJECTS for wording in WORDINGS]
    for index, held in split(Kind.questions, list(range(len(combinations))), 0.12):
        (held_out if held else training).append(question(*combinations[index]))
    return Lessons(tuple(training), tuple(held_out))
