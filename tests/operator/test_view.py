"""What is believed of children and pods, whatever order the news comes in."""

from typing import Any

import pytest

from millrace_operator.manifest import Manifest
from millrace_operator.names import INSTANCE_LABEL
from millrace_operator.view import View

CHAT = ("team", "chat")


def thing(version: int, *, name: str = "chat", service: str = "chat", **fields: Any) -> Manifest:  # noqa: ANN401 - fields of a manifest
    labels = {INSTANCE_LABEL: service} if service else {}
    metadata = {"name": name, "namespace": "team", "resourceVersion": str(version), "labels": labels}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, **fields}


def versions(view: View) -> list[str]:
    return [each["metadata"]["resourceVersion"] for each in view.of(CHAT)]


def test_what_was_written_is_no_news_when_its_event_comes() -> None:
    view = View()
    assert view.learn(thing(9)) == {CHAT}
    assert view.put(thing(9)) == set()
    assert view.put(thing(10)) == {CHAT}


def test_versions_are_numbers() -> None:
    view = View()
    view.put(thing(10))
    assert view.put(thing(9)) == set()
    assert versions(view) == ["10"]


def test_whoever_gets_an_object_may_change_it() -> None:
    view = View()
    view.put(thing(1, spec={"ports": []}))
    view.of(CHAT)[0]["spec"]["ports"].append(80)
    assert view.of(CHAT)[0]["spec"]["ports"] == []


def test_what_was_deleted_and_made_again_stays_in_whatever_order_it_is_told() -> None:
    view = View()
    view.put(thing(1))
    view.put(thing(5))
    assert view.remove(thing(4)) == set()
    assert versions(view) == ["5"]


def test_an_answer_that_is_older_than_a_removal_brings_nothing_back() -> None:
    view = View()
    view.put(thing(1))
    assert view.remove(thing(7)) == {CHAT}
    assert view.learn(thing(6)) == set()
    assert view.learn(thing(3), as_of=6) == set()
    assert versions(view) == []
    assert view.learn(thing(3), as_of=8) == {CHAT}


def test_what_a_list_lacks_went_unseen_unless_it_is_newer_than_the_list() -> None:
    view = View()
    for version, name in ((1, "gone"), (2, "there"), (9, "new")):
        view.put(thing(version, name=name))
    assert view.keep("Service", {("Service", "team", "there")}, as_of=5) == {CHAT}
    assert versions(view) == ["9", "2"]
    assert view.keep("Deployment", set(), as_of=99) == set()
    assert versions(view) == ["9", "2"]


@pytest.mark.parametrize("other", ["other", ""])
def test_an_object_whose_label_changes_is_news_to_both_services(other: str) -> None:
    view = View()
    view.put(thing(1))
    assert view.put(thing(2, service=other)) == {CHAT, *([("team", other)] if other else [])}
    assert versions(view) == []


def test_nothing_is_left_of_what_has_gone() -> None:
    view = View()
    view.put(thing(1))
    view.remove(thing(2))
    assert not view._seen
    assert not view._of
