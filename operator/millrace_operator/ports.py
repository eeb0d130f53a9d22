"""Ports of ours whose number somebody changed. Pure.

To server-side apply a port is its number: one of another number is another port, somebody else's, and stands in the way of ours, for both
have the name. So it is given its number back before anything is applied.
"""

from collections.abc import Iterator
from typing import Any

from millrace_operator.manifest import Manifest

_KEYS = ("port", "containerPort", "protocol")
"""Of Services and of containers."""


def renumberings(wish: Manifest, live: Manifest) -> list[Manifest]:
    """A JSON patch (RFC 6902) that is refused when `live` is no longer so; empty when each port has its number."""
    edits = list(_edits(wish, live, ""))
    seen = {"op": "replace", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]}
    return [seen, *edits] if edits else []


def _edits(wish: Any, live: Any, pointer: str) -> Iterator[Manifest]:  # noqa: ANN401 - any JSON value
    if isinstance(wish, dict) and isinstance(live, dict):
        for name in wish.keys() & live.keys() - {"metadata"}:
            yield from _edits(wish[name], live[name], f"{pointer}/{name}")
    if isinstance(wish, list) and isinstance(live, list):
        places = {each["name"]: place for place, each in enumerate(live) if isinstance(each, dict) and "name" in each}
        for item in wish:
            if isinstance(item, dict) and item.get("name") in places:
                place = places[item["name"]]
                if pointer.endswith("/ports"):
                    yield from _numbers(item, live[place], f"{pointer}/{place}")
                else:
                    yield from _edits(item, live[place], f"{pointer}/{place}")


def _numbers(wish: Manifest, live: Manifest, pointer: str) -> Iterator[Manifest]:
    for key in _KEYS:
        if key in wish and wish[key] != live.get(key):
            yield {"op": "replace", "path": f"{pointer}/{key}", "value": wish[key]}
