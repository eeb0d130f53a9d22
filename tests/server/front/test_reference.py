"""Every setting is documented where people look: in --help and in .env.example."""

import os
import re
import subprocess
import sys

import pytest
from pydantic import Field

from cluster.provider import CHECKOUT
from millrace_server.reference import bounds, reference, shown_default
from millrace_server.settings import ServerSettings, Settings

FIELDS = ServerSettings.model_fields.values()


@pytest.mark.parametrize("field", FIELDS, ids=[str(field.alias) for field in FIELDS])
def test_a_setting_says_what_it_means(field: object) -> None:
    meaning = getattr(field, "description", None)
    assert meaning, "write its meaning and unit below the field in settings.py"
    assert meaning.rstrip().endswith(".")


def test_the_command_line_documents_every_setting() -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    help_ = subprocess.run([sys.executable, "-m", "millrace_server", "--help"], capture_output=True, text=True, check=True, env=environment)
    assert reference(ServerSettings) in help_.stdout
    told = re.findall(r"^  ([A-Z_]+) \((.+?)\): (.+)\n      (.+)$", help_.stdout, re.MULTILINE)
    assert [name for name, *_ in told] == [field.alias for field in FIELDS]
    assert max(map(len, help_.stdout.splitlines())) <= 100


def test_name_default_bounds_and_meaning_are_those_of_the_field() -> None:
    class Some(Settings):
        needed: str = Field(alias="NEEDED", min_length=2, max_length=9)
        """What it is
        for."""
        share: float | None = Field(default=None, alias="SHARE", gt=0, le=1.5)
        """Of something."""
        is_on: bool = Field(default=False, alias="IS_ON")
        """Whether."""

    assert reference(Some) == (
        "  NEEDED (required): text, at least 2 characters, at most 9 characters\n      What it is for.\n"
        "  SHARE (unset): a number, above 0, at most 1.5\n      Of something.\n"
        "  IS_ON (false): true or false\n      Whether."
    )


def test_what_is_documented_as_default_is_taken_and_means_the_default() -> None:
    defaults = {str(field.alias): shown_default(field) for field in FIELDS}
    assert ServerSettings.from_environment({**defaults, "MODEL_NAME": "m"}) == ServerSettings.from_environment({"MODEL_NAME": "m"})
    assert all(map(bounds, FIELDS))


def test_the_example_file_has_every_setting_with_its_default() -> None:
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", (CHECKOUT / ".env.example").read_text(), re.MULTILINE)
    names = [name for name, _ in lines]
    assert sorted(set(names)) == sorted(names), "each once"
    assert set(names) - {"REDIS_PASSWORD"} == {field.alias for field in FIELDS}
    told = dict(lines)
    assert [(field.alias, told[str(field.alias)]) for field in FIELDS if not field.is_required()] == [
        (field.alias, shown_default(field)) for field in FIELDS if not field.is_required()
    ]
