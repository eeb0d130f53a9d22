"""The key file's content, read and written. Pure.

One key per line: its owner's name, a colon, and the SHA-256 of the key in hexadecimal. Hashes, so that a copy of the file opens nothing;
without salt, because a key is 32 random bytes and nobody's word. Empty lines and those that begin with # say nothing. Lines that share a
name are keys of one owner: the old and the new one, while clients change over.
"""

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field

MOST_KEYS = 1000
"""Each request is compared with all of them."""
OTHER = "other"
"""Where metrics count the owners they have no room for; no owner's name."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
NAME_RULE = f"1 to 63 letters, digits, '.', '_' or '-', a letter or digit first, and not {OTHER}"
DIGEST = re.compile(r"[0-9A-Fa-f]{64}")
PREFIX = "mr-"
"""Scanners that look for leaked keys find ours by it."""
NEXT_STEP = "python -m millrace_server.keys new NAME makes a good line"


class BadKeys(ValueError):
    """What is wrong with a key file, by line, without a word of it: anything in it may be a key."""


@dataclass(frozen=True)
class Entry:
    owner: str
    digest: bytes = field(repr=False)
    """SHA-256 of the key."""


def is_name(text: str) -> bool:
    return NAME.fullmatch(text) is not None and text != OTHER


def parse(content: bytes) -> tuple[Entry, ...]:
    """Raises BadKeys."""
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        broken = content.count(b"\n", 0, error.start) + 1
        raise BadKeys(f"line {broken} is no UTF-8 text; save the file as UTF-8") from None
    entries: list[Entry] = []
    lines: dict[bytes, int] = {}
    # Not splitlines(), to which a strange character in a comment begins a line.
    for number, line in enumerate(text.split("\n"), start=1):
        if not (words := line.strip()) or words.startswith("#"):
            continue
        entry = _entry(words, number)
        if entry.digest in lines:
            raise BadKeys(f"line {number} has the key of line {lines[entry.digest]}; remove one of them")
        if len(entries) == MOST_KEYS:
            raise BadKeys(f"line {number} is one key too many; a file has at most {MOST_KEYS}, remove those that nobody uses")
        lines[entry.digest] = number
        entries.append(entry)
    if not entries:
        raise BadKeys(f"it has no key, and nobody could ask; {NEXT_STEP}")
    return tuple(entries)


def owner_of(key: bytes, entries: tuple[Entry, ...]) -> str | None:
    """The name whose key this is. Every entry is compared, so that the time does not tell which one it was, or nearly was."""
    presented = hashlib.sha256(key).digest()
    owner = None
    for entry in entries:
        if hmac.compare_digest(entry.digest, presented):
            owner = entry.owner
    return owner


def make(name: str) -> tuple[str, str]:
    """A new key, and the line for the file. `name` must be one."""
    key = PREFIX + secrets.token_urlsafe(32)
    return key, f"{name}:{hashlib.sha256(key.encode()).hexdigest()}"


def _entry(words: str, line: int) -> Entry:
    name, _, digest = words.partition(":")
    if not is_name(name):
        raise BadKeys(f"line {line} does not begin with a name ({NAME_RULE}) and a colon; {NEXT_STEP}")
    if not DIGEST.fullmatch(digest):
        raise BadKeys(f"line {line} does not have the 64 hexadecimal digits of a key's SHA-256 behind its colon; {NEXT_STEP}")
    return Entry(owner=name, digest=bytes.fromhex(digest))
