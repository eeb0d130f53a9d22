"""The key file: what is a good one, what becomes of a bad one, and that neither keys nor the file's text are ever repeated."""

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from cluster.provider import CHECKOUT
from millrace_server.keys import KeyRing
from millrace_server.keys.entries import MOST_KEYS, BadKeys, make, owner_of, parse
from millrace_server.keys.ring import MAX_BYTES
from millrace_server.settings import InvalidSettings

ALICE, ALICE_LINE = make("alice")
BOB, BOB_LINE = make("team-b.prod_2")


def lines(*given: str) -> bytes:
    return "\n".join(given).encode()


def test_a_key_opens_for_its_owner_and_no_other_text_does() -> None:
    entries = parse(lines("# keys of the staff", "", ALICE_LINE, f"  {BOB_LINE}\r", "#bob:gone"))
    assert (owner_of(ALICE.encode(), entries), owner_of(BOB.encode(), entries)) == ("alice", "team-b.prod_2")
    for other in (b"", b"alice", ALICE_LINE.encode(), ALICE_LINE.partition(":")[2].encode(), ALICE[:-1].encode(), ALICE.encode() + b"x"):
        assert owner_of(other, entries) is None


def test_an_owner_may_have_two_keys_while_clients_change_over() -> None:
    new, new_line = make("alice")
    entries = parse(lines(ALICE_LINE, new_line))
    assert {owner_of(key.encode(), entries) for key in (ALICE, new)} == {"alice"}


def test_a_new_key_is_long_random_and_only_its_hash_is_in_the_line() -> None:
    key, line = make("carol")
    assert key != make("carol")[0]
    assert (key.startswith("mr-"), len(key) >= 3 + 43, key in line) == (True, True, False)
    assert line == f"carol:{hashlib.sha256(key.encode()).hexdigest()}"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it has no key"),
        (b"# nothing\n\n", "it has no key"),
        (lines("# a", "hunter2-the-key-itself"), "line 2 does not have the 64 hexadecimal digits"),
        (lines("alice:" + "0" * 63), "line 1 does not have the 64 hexadecimal digits"),
        (lines("alice:" + "0" * 65), "line 1 does not have the 64 hexadecimal digits"),
        (lines("alice:" + "g" * 64), "line 1 does not have the 64 hexadecimal digits"),
        (lines("alice:" + "0" * 64 + " # hers"), "line 1 does not have the 64 hexadecimal digits"),
        (lines("alice:" + "٠" * 64), "line 1 does not have the 64 hexadecimal digits"),
        (lines(ALICE_LINE, ":" + "0" * 64), "line 2 does not begin with a name"),
        (lines("-alice:" + "0" * 64), "line 1 does not begin with a name"),
        (lines("other:" + "0" * 64), "line 1 does not begin with a name"),
        (lines("a b:" + "0" * 64), "line 1 does not begin with a name"),
        (lines("älice:" + "0" * 64), "line 1 does not begin with a name"),
        (lines("a" * 64 + ":" + "0" * 64), "line 1 does not begin with a name"),
        (lines(ALICE_LINE, BOB_LINE, ALICE_LINE.replace("alice", "eve")), "line 3 has the key of line 1"),
        (lines(*(make("a")[1] for _ in range(MOST_KEYS + 1))), f"line {MOST_KEYS + 1} is one key too many"),
        (ALICE_LINE.encode() + b"\n\xff\xfe", "line 2 is no UTF-8 text"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,  # keys are made anew by each process of a run
)
def test_a_bad_file_is_refused_by_its_line_without_a_word_of_it(content: bytes, sentence: str) -> None:
    with pytest.raises(BadKeys, match=sentence) as refused:
        parse(content)
    assert "hunter2" not in str(refused.value)
    assert not any(len(word) > 9 and word in str(refused.value) for word in content.decode(errors="replace").replace(":", "\n").split())


@given(
    st.one_of(
        st.binary(max_size=200), st.text(max_size=200).map(str.encode), st.binary(max_size=60).map(lambda end: ALICE_LINE.encode() + end)
    )
)
def test_whatever_is_in_the_file_is_keys_or_one_printable_sentence(content: bytes) -> None:
    try:
        said = "keys" if parse(content) else ""
    except BadKeys as error:
        said = str(error)
    assert said
    assert said.isprintable()


def test_every_entry_is_compared_whichever_matches(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(ours)
        return ours == theirs

    entries = parse(lines(ALICE_LINE, BOB_LINE, make("carol")[1]))
    monkeypatch.setattr("hmac.compare_digest", compare)
    for key in (ALICE, BOB, "nobody's"):
        owner_of(key.encode(), entries)
    assert compared == [entry.digest for entry in entries] * 3


class Mounted:
    """A Secret as the kubelet mounts and swaps it: the file is a link into `..data`, which is a link to a folder that is never changed."""

    def __init__(self, folder: Path, *given: str) -> None:
        self._folder = folder
        self._version = 0
        self.swap(*given)
        self.path = folder / "api-keys"
        self.path.symlink_to(Path("..data") / "api-keys")

    def swap(self, *given: str) -> None:
        self._version += 1
        version = self._folder / f"..2026_{self._version}"
        version.mkdir()
        (version / "api-keys").write_bytes(lines(*given))
        new = self._folder / "..data_tmp"
        new.symlink_to(version.name)
        new.rename(self._folder / "..data")

    def unmount(self) -> None:
        (self._folder / "..data").unlink()


def is_valid(ring: KeyRing) -> float | None:
    registry = CollectorRegistry()
    registry.register(ring)
    return registry.get_sample_value("llm_key_file_valid")


def test_a_swapped_secret_is_taken_over_whole(tmp_path: Path) -> None:
    mounted = Mounted(tmp_path, ALICE_LINE)
    ring = KeyRing(mounted.path)
    mounted.swap(BOB_LINE)
    assert ring.owner(ALICE.encode()) == "alice", "until it is looked at"
    ring.refresh()
    assert (ring.owner(ALICE.encode()), ring.owner(BOB.encode())) == (None, "team-b.prod_2")


def test_a_file_of_the_same_size_and_time_is_a_new_one_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    other, other_line = make("alice")
    path.write_text(ALICE_LINE)
    ring = KeyRing(path)
    then = path.stat()
    path.write_text(other_line)
    os.utime(path, ns=(then.st_atime_ns, then.st_mtime_ns))
    ring.refresh()
    assert (ring.owner(ALICE.encode()), ring.owner(other.encode())) == (None, "alice")


def test_a_bad_file_changes_nothing_is_complained_of_once_and_recovered_from(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    mounted = Mounted(tmp_path, ALICE_LINE)
    ring = KeyRing(mounted.path)
    assert is_valid(ring) == 1
    bad: list[tuple[tuple[str, ...], str]] = [
        ((), "it has no key"),
        ((BOB_LINE, "hunter2"), "line 2 does not have the 64 hexadecimal digits"),
    ]
    for content, sentence in bad:
        mounted.swap(*content)
        caplog.clear()
        for _ in range(3):
            ring.refresh()
        assert (ring.owner(ALICE.encode()), ring.owner(BOB.encode()), is_valid(ring)) == ("alice", None, 0)
        (record,) = caplog.records
        assert sentence in vars(record)["why"]
        assert "hunter2" not in str(vars(record))
    mounted.unmount()
    caplog.clear()
    ring.refresh()
    assert (ring.owner(ALICE.encode()), is_valid(ring)) == ("alice", 0)
    assert "it cannot be read (No such file or directory)" in vars(caplog.records[0])["why"]
    mounted.swap(ALICE_LINE)
    ring.refresh()
    assert (ring.owner(ALICE.encode()), is_valid(ring)) == ("alice", 1), "the old content, which is good again"


def test_a_folder_and_an_endless_file_are_no_key_files(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="it is no file"):
        KeyRing(tmp_path)
    with pytest.raises(InvalidSettings, match="it is no file"):
        KeyRing(Path("/dev/zero"))
    large = tmp_path / "large"
    large.write_bytes(lines(ALICE_LINE) + b"\n" * MAX_BYTES)
    with pytest.raises(InvalidSettings, match=f"it has more than {MAX_BYTES} bytes"):
        KeyRing(large)


@pytest.mark.parametrize(("content", "sentence"), [(None, "it cannot be read"), (b"hunter2", "line 1 does not have")])
def test_a_server_with_a_bad_key_file_does_not_start(tmp_path: Path, content: bytes | None, sentence: str) -> None:
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    environment = {**os.environ, "MODEL_NAME": "m", "API_KEYS_FILE": str(path), "TERMINATION_LOG": str(tmp_path / "log")}
    ended = subprocess.run([sys.executable, "-m", "millrace_server"], env=environment, capture_output=True, text=True)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"API_KEYS_FILE='{path}' is refused: {sentence}")
    assert sentence in (tmp_path / "log").read_text()
    assert "hunter2" not in line


def test_the_documented_secret_is_a_good_key_file() -> None:
    readme = (CHECKOUT / "server" / "README.md").read_text()
    documented = re.findall(r"^```yaml\n(apiVersion: v1\nkind: Secret\n.*?)^```$", readme, re.DOTALL | re.MULTILINE)
    (secret,) = map(yaml.safe_load, documented)
    entries = parse(secret["stringData"]["api-keys"].encode())
    assert [entry.owner for entry in entries] == ["team-a", "team-a", "team-b"]


def test_the_command_makes_a_key_that_the_file_knows(tmp_path: Path) -> None:
    made = subprocess.run([sys.executable, "-m", "millrace_server.keys", "new", "alice"], capture_output=True, text=True, check=True)
    path = tmp_path / "keys"
    path.write_text(made.stdout)
    assert KeyRing(path).owner(made.stderr.strip().encode()) == "alice"
    refused = subprocess.run([sys.executable, "-m", "millrace_server.keys", "new", "a b"], capture_output=True, text=True)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "a name has 1 to 63 letters" in refused.stderr
