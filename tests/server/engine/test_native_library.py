"""The compiled library and those who call it agree, or it is not used."""

import ctypes
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millrace_server.engine import native

SOURCE = Path(__file__).parents[3] / "server" / "native" / "native.cpp"
OTHER_SOURCES = 'extern "C" long millrace_agrees() { return 0; }'
FLAGS = ["-target", "x86_64-linux-gnu.2.28", "-std=c++17", "-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

pytestmark = pytest.mark.skipif(not native.pays(), reason="the compiled library does not serve this CPU")


@pytest.fixture
def nothing_known() -> Iterator[None]:
    native.library.cache_clear()
    yield
    native.library.cache_clear()


def compile_with_zig(source: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "source.cpp").write_text(source)
    command = [sys.executable, "-m", "ziglang", "c++", *FLAGS, *options, str(folder / "source.cpp")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_library_serves_this_cpu() -> None:
    assert native.library() is not None


def test_structures_mirror_those_of_the_source(tmp_path: Path) -> None:
    claims = [f'#include "{SOURCE}"']
    for name, structure in native.MIRRORED.items():
        claims.append(f"static_assert(sizeof({name}) == {ctypes.sizeof(structure)});")
        for field, *_ in structure._fields_:
            place = getattr(structure, field)
            claims.append(f"static_assert(offsetof({name}, {field}) == {place.offset} && sizeof({name}::{field}) == {place.size});")
    compiled = compile_with_zig("\n".join(claims), tmp_path, "-c", "-include", "stddef.h", "-o", str(tmp_path / "claims.o"))
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.parametrize("damage", ["missing", "garbage", "no library of ours", "another version"])
@pytest.mark.usefixtures("nothing_known")
def test_a_library_that_does_not_fit_is_left_alone(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    library = tmp_path / "libnative.so"
    if damage == "garbage":
        library.write_bytes(b"\x7fELF" + bytes(60))
    elif damage != "missing":
        source = OTHER_SOURCES if damage == "another version" else "int nothing;"
        compiled = compile_with_zig(source, tmp_path, "-shared", "-fPIC", "-nostdlib++", "-o", str(library))
        assert compiled.returncode == 0, compiled.stderr
    monkeypatch.setattr(native, "LIBRARY", library)
    with caplog.at_level(logging.WARNING):
        assert native.library() is None
    assert "make env" in caplog.text


@pytest.mark.parametrize("change", ["one more", "one less", "other"])
def test_the_library_knows_a_layout_that_is_not_its_own(change: str) -> None:
    layout = {"one more": (*native.LAYOUT, 1), "one less": native.LAYOUT[:-1], "other": (*native.LAYOUT[:-1], native.LAYOUT[-1] + 1)}[
        change
    ]
    agrees = ctypes.CDLL(str(native.LIBRARY)).millrace_agrees
    assert agrees((ctypes.c_int64 * len(native.LAYOUT))(*native.LAYOUT), ctypes.c_int64(len(native.LAYOUT)))
    assert not agrees((ctypes.c_int64 * len(layout))(*layout), ctypes.c_int64(len(layout)))
