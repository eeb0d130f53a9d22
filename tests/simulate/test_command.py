"""The command itself, as a user types it: what it tells, draws and refuses."""

import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from millrace_operator.simulate.__main__ import main
from services import CHECKOUT, EXAMPLES

GUIDE = CHECKOUT / "docs/autoscaling.md"
PROGRAM = "python -m millrace_operator.simulate"
SESSIONS = re.findall(rf"```console\n\$ {re.escape(PROGRAM)} ([^\n]*)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
"""What the guide shows: the words, and what came of them."""
QUICK = ["--load", "steady", "--high", "2", "--minutes", "3", "--seeds", "1"]


@pytest.mark.parametrize(("words", "told"), SESSIONS, ids=[words for words, _ in SESSIONS])
def test_what_the_guide_shows_is_what_the_command_tells(
    words: str, told: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`…` in the guide stands for lines that it leaves out."""
    shutil.copytree(CHECKOUT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.svg"))
    monkeypatch.chdir(tmp_path)
    main(shlex.split(words))
    got = capsys.readouterr().out
    assert re.fullmatch(r".*".join(re.escape(part) for part in told.split("…\n")), got, re.DOTALL), got
    for picture in (tmp_path / "docs").glob("*.svg"):
        assert picture.read_text() == (CHECKOUT / "docs" / picture.name).read_text(), f"run {PROGRAM} {words}"


def test_the_guide_shows_sessions() -> None:
    assert len(SESSIONS) >= 3


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_can_be_played(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(EXAMPLES[name]), *QUICK])
    assert re.search(r"^Millrace +\d", capsys.readouterr().out, re.MULTILINE)


def test_the_picture_is_well_formed_and_names_every_law(tmp_path: Path) -> None:
    picture = tmp_path / "play.svg"
    main([str(EXAMPLES["minimal"]), *QUICK, "--picture", str(picture)])
    root = ElementTree.fromstring(picture.read_text())
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Millrace", "HPA AverageValue", "Knative", "KubeAI, 10 min mean"} <= set(words)
    assert "NaN" not in picture.read_text()


def test_several_sizes_give_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    main([str(EXAMPLES["minimal"]), *QUICK, "--min-replicas", "1", "3", "--target-per-replica", "4", "8"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[-4:]] == ["1, 4", "1, 8", "3, 4", "3, 8"]


def test_a_recorded_trace_is_replayed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = tmp_path / "monday.csv"
    trace.write_text("seconds,requests_per_second\n0,1\n120,3\n240,0\n")
    main([str(EXAMPLES["minimal"]), "--trace", str(trace), "--seeds", "1"])
    assert capsys.readouterr().out.startswith("monday.csv, 4 min, up to 3 requests/s")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("kind: ConfigMap", "holds 0 objects of kind InferenceService; name a file with one"),
        ("kind: InferenceService\nmetadata: {name: chat}\nspec: {model: {name: m}, queue: {maxSize: -1}}", "spec.queue.maxSize"),
        ("kind: InferenceService\nspec: {model: {name: m}}", "metadata.name"),
        ("a: [", "while parsing"),
    ],
)
def test_what_is_no_service_is_refused(content: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "service.yaml"
    file.write_text(content)
    with pytest.raises(SystemExit, match="2"):
        main([str(file)])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--high", "0"], ["--high", "nan"], ["--cold-start", "-1"], ["--seeds", "0"], ["--trace", "nowhere.csv"]]
)
def test_what_cannot_be_played_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([str(EXAMPLES["minimal"]), *words])
    assert words[0].lstrip("-") in capsys.readouterr().err or "nowhere.csv" in words
