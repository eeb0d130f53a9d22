"""The CustomResourceDefinition and its field reference, derived from `api.py`. Pure.

Pydantic describes the models in JSON Schema; `structural` rewrites that into the dialect that Kubernetes accepts: no references,
no titles, no null, and `{}` as the default of every parent, so that the API server fills in the defaults one by one.
"""

from collections.abc import Iterator

from millrace_operator.api import ROOT_RULES, InferenceServiceSpec, InferenceServiceStatus
from millrace_operator.manifest import Manifest
from millrace_operator.names import GROUP, KIND, PLURAL, SHORT_NAME, SINGULAR, VERSION

_PRINTER_COLUMNS = (
    ("Ready", "string", '.status.conditions[?(@.type=="Ready")].status'),
    ("Reason", "string", '.status.conditions[?(@.type=="Ready")].reason'),
    ("Replicas", "integer", ".status.replicas"),
    ("Load", "integer", ".status.autoscaling.load"),
    ("URL", "string", ".status.url"),
    ("Age", "date", ".metadata.creationTimestamp"),
)


def crd() -> Manifest:
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            # The chart carries the CRD as a template, so that an upgrade updates it; uninstalling the chart must not delete every service.
            "annotations": {"helm.sh/resource-policy": "keep"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": SINGULAR,
                "shortNames": [SHORT_NAME],
                "categories": ["all"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": [{"name": name, "type": kind, "jsonPath": path} for name, kind, path in _PRINTER_COLUMNS],
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.replicas",
                            "statusReplicasPath": ".status.replicas",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "schema": {"openAPIV3Schema": root_schema()},
                }
            ],
        },
    }


def root_schema() -> Manifest:
    """Schema of the whole object."""
    return {
        "type": "object",
        "description": "Serves one language model: a server Deployment, its Services and its scaling.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string", "maxLength": 63},
            "kind": {"type": "string", "maxLength": 63},
            "metadata": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 253}}},
            "spec": structural(InferenceServiceSpec.model_json_schema(by_alias=True)),
            "status": {
                **structural(InferenceServiceStatus.model_json_schema(by_alias=True)),
                # Tools that judge health by generations (kstatus) see that nothing was observed yet.
                "default": {"observedGeneration": InferenceServiceStatus().observed_generation},
            },
        },
        "x-kubernetes-validations": [rule.schema() for rule in ROOT_RULES],
    }


def structural(schema: Manifest) -> Manifest:
    """`schema` in the dialect of a CRD."""
    return _structural(schema, schema.get("$defs", {}))


_KEPT = (
    "type", "description", "default", "enum", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems",
    "maxProperties", "required", "anyOf",
)  # fmt: skip


def _structural(schema: Manifest, definitions: Manifest) -> Manifest:
    schema = _resolved(schema, definitions)
    result = {key: value for key, value in schema.items() if key in _KEPT or key.startswith("x-kubernetes-")}
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if "properties" in schema:
        result["properties"] = {name: _structural(field, definitions) for name, field in schema["properties"].items()}
        if "default" in result:
            result["default"] = {}
    # A map. Pydantic states its keys' pattern, which a CRD cannot hold: CEL rules bound the keys.
    for values in (*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")):
        if isinstance(values, dict):
            result["additionalProperties"] = _structural(values, definitions)
            result.pop("default", None)
    if "items" in schema:
        result["items"] = _structural(schema["items"], definitions)
        result.pop("default", None)
    return result


def _resolved(schema: Manifest, definitions: Manifest) -> Manifest:
    """Without `$ref` and without `| null`; what stands beside them (description, default) goes before what they point to."""
    beside = {key: value for key, value in schema.items() if key not in ("$ref", "anyOf")}
    if "$ref" in schema:
        return {**_resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions), **beside}
    options = schema.get("anyOf", [])
    if {"type": "null"} in options:
        (only,) = [option for option in options if option != {"type": "null"}]
        del beside["default"]
        return {**_resolved(only, definitions), **beside}
    return schema


def reference() -> str:
    """The field reference, in Markdown."""
    spec, status = (root_schema()["properties"][part] for part in ("spec", "status"))
    return "\n".join(
        [
            f"# {KIND} ({GROUP}/{VERSION})",
            "",
            "Written by `python -m millrace_operator.generate` from `operator/millrace_operator/api.py`; edit that instead.",
            "A field without default may be left out unless it says *required*.",
            "",
            "## metadata.name",
            "",
            *(f"- {rule.message}" for rule in ROOT_RULES),
            "",
            "## spec",
            "",
            *_table(spec, "spec"),
            "",
            "### Rules over several fields",
            "",
            *(f"- `{path}`: {message}" for path, message in _rules(spec, "spec")),
            "",
            "## status",
            "",
            *_table(status, "status"),
            "",
        ]
    )


def _table(schema: Manifest, path: str) -> Iterator[str]:
    yield "| field | type | default | bounds | meaning |"
    yield "|---|---|---|---|---|"
    yield from _rows(schema, path)


def _rows(schema: Manifest, path: str) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        here = f"{path}.{name}"
        default = "*required*" if name in schema.get("required", []) else _default(field)
        meaning = field.get("description", "").replace("|", "\\|")
        yield f"| `{here}` | {_type(field)} | {default} | {_bounds(field)} | {meaning} |"
        yield from _rows(field, here)
        yield from _rows(field.get("items", {}), f"{here}[]")


def _type(field: Manifest) -> str:
    if "anyOf" in field:
        return "quantity"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    if "items" in field:
        return f"list of {_type(field['items'])}"
    if "additionalProperties" in field:
        return f"map to {_type(field['additionalProperties'])}"
    return str(field["type"])


def _default(field: Manifest) -> str:
    if not field.get("default") and field.get("default") != 0:
        return ""
    return f"`{field['default']}`"


def _bounds(field: Manifest) -> str:
    words = []
    if "minimum" in field or "maximum" in field:
        words.append(f"{field.get('minimum', '')} … {field.get('maximum', '')}".strip())
    for key, unit in (("maxLength", "characters"), ("maxItems", "items"), ("maxProperties", "entries")):
        if key in field:
            words.append(f"≤ {field[key]} {unit}")
    return ", ".join(words)


def _rules(schema: Manifest, path: str) -> Iterator[tuple[str, str]]:
    for rule in schema.get("x-kubernetes-validations", []):
        yield path + rule.get("fieldPath", ""), rule["message"]
    for name, field in schema.get("properties", {}).items():
        yield from _rules(field, f"{path}.{name}")
    if "items" in schema:
        yield from _rules(schema["items"], f"{path}[]")
