"""Two clusters of one machine share no name, address or cgroup."""

import os
from pathlib import Path

import pytest

from cluster.local.slot import SLOTS, Slot, take_free_slot


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLRACE_CACHE", str(tmp_path))


def test_a_slot_is_held_until_its_descriptor_is_closed() -> None:
    first, held_first = take_free_slot()
    second, held_second = take_free_slot()
    assert first != second
    os.close(held_first)
    again, held_again = take_free_slot()
    assert again == first
    os.close(held_second)
    os.close(held_again)


def test_no_two_slots_or_nodes_share_a_name() -> None:
    slots = [Slot(number) for number in range(SLOTS)]
    nodes = [slot.node(index) for slot in slots for index in (1, 2, 3)]
    for names in (
        [slot.host_interface for slot in slots],
        [slot.host_address for slot in slots] + [slot.control_plane_address for slot in slots] + [node.address for node in nodes],
        [node.cgroup for node in nodes],
        [str(node.containerd_root) for node in nodes],
    ):
        assert len(set(names)) == len(names)


def test_no_slot_sweeps_the_cgroups_of_another() -> None:
    slots = [Slot(number) for number in range(SLOTS)]
    for node in [slot.node(1) for slot in slots]:
        assert [slot for slot in slots if node.cgroup.startswith(slot.cgroup_prefix)] == [node.slot]


def test_an_interface_name_is_short_enough_for_the_kernel() -> None:
    longest = 15
    assert all(len(Slot(number).host_interface) <= longest for number in range(SLOTS))
