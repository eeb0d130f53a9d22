"""Which version of the operator this is, and which of two is newer. Pure."""

import re

RELEASE = "0.1.0"
"""As pyproject.toml and the chart have it."""


def is_newer(release: str, *, than: str) -> bool:
    """By the numbers at the beginning: `0.10.0` is newer than `0.9`, `1.0rc1` as new as `1.0`. What begins with none is older than any."""
    return _numbers(release) > _numbers(than)


def _numbers(release: str) -> tuple[int, ...]:
    """Without zeros at the end, which say nothing."""
    found = re.match(r"\d{1,9}(\.\d{1,9})*", release)
    numbers = [int(each) for each in found[0].split(".")] if found else []
    while numbers and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)
