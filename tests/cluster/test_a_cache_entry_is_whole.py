"""An interrupted build is never taken for a finished one, and two builders never make the same thing twice."""

import threading
from pathlib import Path

import pytest

from cluster import cache


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "cache"))


def _write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def test_an_entry_that_failed_half_way_is_made_again() -> None:
    def breaks(folder: Path) -> None:
        (folder / "file").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.folder("thing/v1", breaks)
    made = cache.folder("thing/v1", _write)
    assert (made / "file").read_text() == "whole"
    assert [each.name for each in made.parent.iterdir()] == ["v1"]


def test_an_entry_is_made_once_however_many_ask_at_the_same_time() -> None:
    makers: list[Path] = []
    all_ask = threading.Barrier(4)

    def fill(folder: Path) -> None:
        makers.append(folder)
        _write(folder)

    def ask() -> None:
        all_ask.wait()
        cache.folder("thing/v2", fill)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(makers) == 1


def test_only_a_folder_that_we_made_is_purged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.folder("thing/v3", _write)
    cache.purge()
    assert not (tmp_path / "cache").exists()
    (tmp_path / "precious").mkdir()
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path / "precious"))
    with pytest.raises(cache.NotOurs, match="precious"):
        cache.purge()
    assert (tmp_path / "precious").exists()
