"""A Go that is too old is refused before anything is downloaded."""

from pathlib import Path

import pytest

from cluster import binaries
from cluster.binaries import CannotBuild


@pytest.mark.parametrize(
    ("found", "reason"), [("go1.25.9", "go1.25.9; .* Go 1.26 or newer"), (None, "no `go` is on PATH: install Go 1.26")]
)
def test_helm_is_not_built_by_an_older_go(found: str | None, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if found:
        (tmp_path / "go").write_text(f"#!/bin/sh\n[ $1 = env ] && echo {found}\n")
        (tmp_path / "go").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CannotBuild, match=reason):
        binaries.binary("helm")
