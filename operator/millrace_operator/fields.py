"""What fields are made of: the frozen model, rules with a sentence, and the words that several fields share. Pure.

A rule is CEL, judged by the API server; its message is what a user reads beside the field's path.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from millrace_operator.quantity import QUANTITY_PATTERN, require_whole_bytes
from millrace_operator.source import DNS_SUBDOMAIN, IMAGE_PATTERN


@dataclass(frozen=True)
class Rule:
    """A cross-field rule: `cel` over `self`, a sentence for the user, and the field to blame (relative to where the rule stands)."""

    cel: str
    message: str
    path: str = ""

    def schema(self) -> dict[str, str]:
        blamed = {"fieldPath": self.path} if self.path else {}
        return {"rule": self.cel, "message": self.message, **blamed}


class Model(BaseModel):
    """Frozen, camelCase on the wire; unknown fields are ignored, so that a newer version's objects can be read."""

    model_config = ConfigDict(frozen=True, extra="ignore", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core_schema))
        if cls.rules:
            schema["x-kubernetes-validations"] = [rule.schema() for rule in cls.rules]
        return schema


ATOMIC_LIST = {"x-kubernetes-list-type": "atomic"}
"""A list that server-side apply replaces as a whole."""

UNIQUE_LIST = {"x-kubernetes-list-type": "set"}
"""A list in which nothing stands twice."""


def list_map(*keys: str) -> dict[str, Any]:
    """A list of objects that server-side apply merges by `keys`, which together are unique."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)}


def text(pattern: str, message: str, *, at_most: int, at_least: int = 1) -> Any:  # noqa: ANN401 - pydantic's own Field has this type
    """A string of a form that `message` explains; a CRD's `pattern` would answer with the regular expression."""
    rule = Rule(cel=f"self.matches(r'{pattern}')", message=message)
    return Field(min_length=at_least, max_length=at_most, pattern=pattern, json_schema_extra=validations(rule))


def validations(*rules: Rule) -> dict[str, Any]:
    """The rules of a field that is no model."""
    return {"x-kubernetes-validations": [rule.schema() for rule in rules]}


_QUALIFIED_NAME = r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = rf"^({DNS_SUBDOMAIN}/)?{_QUALIFIED_NAME}$"
_LABEL_VALUE = rf"^({_QUALIFIED_NAME})?$"
_MODEL_NAME = r"^[A-Za-z0-9]([A-Za-z0-9._:@/+-]*[A-Za-z0-9])?$"
EXTENDED_RESOURCE = rf"^{DNS_SUBDOMAIN}/{_QUALIFIED_NAME}$"
_MAX_KEY_LENGTH = 253

ObjectName = Annotated[
    str, text(rf"^{DNS_SUBDOMAIN}$", "must be an object's name: lower-case letters, digits, '-' and '.', without a namespace", at_most=253)
]
ModelName = Annotated[
    str, text(_MODEL_NAME, "must be letters, digits and . _ : @ / + - between them, such as Qwen/Qwen2.5-0.5B-Instruct", at_most=253)
]
ImageName = Annotated[str, text(IMAGE_PATTERN, "must be an image: NAME[:TAG][@sha256:DIGEST]", at_most=512)]
LabelKey = Annotated[str, text(_LABEL_KEY, "must be [PREFIX/]NAME", at_most=_MAX_KEY_LENGTH)]
LabelValue = Annotated[
    str,
    text(
        _LABEL_VALUE,
        "must be at most 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        at_most=63,
        at_least=0,
    ),
]
AnnotationValue = Annotated[str, Field(max_length=4096)]

_IS_QUANTITY = f"string(self).matches(r'{QUANTITY_PATTERN}')"
_BYTES = "quantity(string(self)).asApproximateFloat()"


def _int_or_string(rule: Rule) -> WithJsonSchema:
    kinds = [{"type": "integer"}, {"type": "string"}]
    return WithJsonSchema({"anyOf": kinds, "maxLength": 32, "x-kubernetes-int-or-string": True, **validations(rule)})


_as_text = BeforeValidator(lambda value: str(value) if isinstance(value, int) and not isinstance(value, bool) else value)

Quantity = Annotated[
    str, _as_text, Field(pattern=QUANTITY_PATTERN), _int_or_string(Rule(cel=_IS_QUANTITY, message="must be a quantity: 2, 500m, 8Gi"))
]
Size = Annotated[
    str,
    _as_text,
    Field(pattern=QUANTITY_PATTERN),
    AfterValidator(require_whole_bytes),
    _int_or_string(
        Rule(cel=f"{_IS_QUANTITY} && double(int({_BYTES})) == {_BYTES}", message="must be a whole number of bytes: 8Gi, 500M, 1073741824")
    ),
]


def keys_are_labels(what: str) -> Rule:
    return Rule(
        cel=f"self.all(key, size(key) <= {_MAX_KEY_LENGTH} && key.matches(r'{_LABEL_KEY}'))",
        message=f"keys of {what} must be [PREFIX/]NAME",
    )


def reserved_keys(*prefixes: str) -> Rule:
    return Rule(
        cel="self.all(key, " + " && ".join(f"!key.startsWith('{prefix}')" for prefix in prefixes) + ")",
        message=f"keys must not begin with {' or '.join(prefixes)}",
    )
