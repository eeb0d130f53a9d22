"""Every setting in words, as `settings.py` has them: for `--help`. Pure."""

import textwrap
from collections.abc import Iterable
from enum import StrEnum
from types import UnionType
from typing import Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo

from millrace_server.settings import Settings

WIDTH = 100
INDENT = "      "


def reference(settings: type[Settings]) -> str:
    """A paragraph per variable: its name, its default, what it may be, what it means and its unit."""
    return "\n".join(_paragraph(field) for field in settings.model_fields.values())


def shown_default(field: FieldInfo) -> str:
    """As one would write it into the environment; empty when the variable is required or unset."""
    if field.is_required() or field.default is None:
        return ""
    return str(field.default).lower() if isinstance(field.default, bool) else str(field.default)


def bounds(field: FieldInfo) -> str:
    """What values there are."""
    kind = _kind(field)
    if issubclass(kind, StrEnum):
        return _alternatives(list(kind))
    if kind is bool:
        return _alternatives(["true", "false"])
    noun = {str: "text", int: "a whole number", float: "a number"}[kind]
    return ", ".join([noun, *map(_limit, field.metadata)])


def _paragraph(field: FieldInfo) -> str:
    default = "required" if field.is_required() else shown_default(field) or "unset"
    meaning = textwrap.fill(
        " ".join((field.description or "").split()), WIDTH, initial_indent=INDENT, subsequent_indent=INDENT, break_on_hyphens=False
    )
    return f"  {field.alias} ({default}): {bounds(field)}\n{meaning}"


def _kind(field: FieldInfo) -> type:
    """Without the None that means unset."""
    kind = field.annotation
    if get_origin(kind) in (Union, UnionType):
        (kind,) = (each for each in get_args(kind) if each is not type(None))
    if not isinstance(kind, type):
        raise TypeError(f"{field.alias} has a type that this module cannot tell: {kind}")
    return kind


def _limit(limit: object) -> str:
    match limit:
        case annotated_types.Ge(ge=least):
            return f"at least {least}"
        case annotated_types.Gt(gt=less):
            return f"above {less}"
        case annotated_types.Le(le=most):
            return f"at most {most}"
        case annotated_types.MinLen(min_length=least):
            return f"at least {least} characters"
        case annotated_types.MaxLen(max_length=most):
            return f"at most {most} characters"
    raise TypeError(f"no words are known for the limit {limit}")


def _alternatives(values: Iterable[str]) -> str:
    *others, last = values
    return f"{', '.join(others)} or {last}" if others else last
