"""InferenceServices for tests: the examples in manifests/, short ones that show only what matters, and any that the schema allows."""

from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from millrace_operator.api import InferenceService, InferenceServiceSpec, parse
from millrace_operator.desired import Platform
from millrace_operator.manifest import Manifest
from millrace_operator.names import API_VERSION, KIND

CHECKOUT = Path(__file__).parents[1]
EXAMPLES = {path.stem: path for path in sorted((CHECKOUT / "manifests/examples").glob("*.yaml"))}
PLATFORM = Platform(server_image="millrace/server:0.1.0", redis_image="redis:8-alpine", operator_namespace="millrace-system")
UID = "7f3c1f0e-0000-4000-8000-000000000001"


def example(name: str) -> Manifest:
    """The InferenceService of an example, as its author wrote it."""
    (manifest,) = [each for each in yaml.safe_load_all(EXAMPLES[name].read_text()) if each["kind"] == KIND]
    return dict(manifest)


def manifest(name: str = "chat", *, model: Manifest | None = None, **spec: object) -> Manifest:
    """`manifest(device="cpu")`; fields as in YAML."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name},
        "spec": {"model": {"name": "owner/model", **(model or {})}, **spec},
    }


def stored(wanted: Manifest, *, namespace: str = "default", uid: str = UID) -> Manifest:
    """The same with what the API server adds."""
    return {**wanted, "metadata": {"namespace": namespace, "uid": uid, "generation": 1, "resourceVersion": "1", **wanted["metadata"]}}


def service(name: str = "chat", *, model: Manifest | None = None, **spec: object) -> InferenceService:
    return parse(stored(manifest(name, model=model, **spec)))


def specs() -> st.SearchStrategy[Manifest]:
    """Any spec inside the bounds and patterns of single fields; rules over several fields may still refuse it."""
    schema = InferenceServiceSpec.model_json_schema(by_alias=True)
    return _values(schema, schema["$defs"])


_SIZES = st.sampled_from([1, 2, "1", "2", "4Gi", "1.5Gi", "8000M"])
_QUANTITIES = st.sampled_from(["500m", "1500m"]) | _SIZES


def _values(schema: Manifest, definitions: Manifest) -> st.SearchStrategy[Any]:
    if "$ref" in schema:
        return _values(definitions[schema["$ref"].rpartition("/")[2]], definitions)
    if schema.get("x-kubernetes-int-or-string"):
        is_size = any("bytes" in rule["message"] for rule in schema["x-kubernetes-validations"])
        return _SIZES if is_size else _QUANTITIES
    if "anyOf" in schema:
        return st.one_of([_values(option, definitions) for option in schema["anyOf"] if option != {"type": "null"}])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    match schema["type"]:
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema["minimum"], schema["maximum"])
        case "string":
            return _strings(schema)
        case "array":
            unique = schema.get("x-kubernetes-list-type") in ("set", "map")
            items, fewest = _values(schema["items"], definitions), schema.get("minItems", 0)
            return st.lists(items, min_size=fewest, max_size=3, unique_by=(lambda item: repr(item)) if unique else None)
        case "object" if "properties" in schema:
            fields = {name: _values(field, definitions) for name, field in schema["properties"].items()}
            required = schema.get("required", [])
            return st.fixed_dictionaries(
                {name: fields[name] for name in required}, optional={name: fields[name] for name in fields if name not in required}
            )
        case "object":
            ((key, value),) = schema["patternProperties"].items()
            return st.dictionaries(_strings({"pattern": key, "maxLength": 253}), _values(value, definitions), max_size=3)
        case other:
            raise NotImplementedError(other)


def _strings(schema: Manifest) -> st.SearchStrategy[str]:
    """Python's `$` also matches before a line end, which nobody else's does."""
    shortest, longest = schema.get("minLength", 0), schema["maxLength"]
    if "pattern" not in schema:
        return st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=shortest, max_size=longest)
    pattern = schema["pattern"].removesuffix("$") + r"\Z"
    return st.from_regex(pattern).filter(lambda text: shortest <= len(text) <= longest)
