"""The children of every example, word for word: only a release that changes a pod template here rolls pods.

`GOLDEN=write make fast ARGS=tests/operator/test_golden.py` writes the files anew; read their diff as the users' pods will feel it.
"""

import os

import pytest

from millrace_operator.api import parse
from millrace_operator.desired import children
from millrace_operator.generate import yaml_text
from services import CHECKOUT, EXAMPLES, PLATFORM, example, stored

GOLDEN = CHECKOUT / "tests/golden"


@pytest.mark.parametrize("name", EXAMPLES)
def test_children_of_an_example_are_as_reviewed(name: str) -> None:
    text = yaml_text(*children(parse(stored(example(name))), platform=PLATFORM))
    file = GOLDEN / f"{name}.yaml"
    if os.environ.get("GOLDEN") == "write":
        file.write_text(text)
    assert text == file.read_text(), f"{file.name} differs: if the change is meant, write it with GOLDEN=write and say so in the CHANGELOG"


def test_there_is_no_golden_file_without_an_example() -> None:
    assert {file.stem for file in GOLDEN.glob("*.yaml")} == set(EXAMPLES)
