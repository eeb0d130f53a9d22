"""Two clusters of one machine share no name, address or cgroup."""

import ipaddress
import os

from cluster.local.slot import MOST_NODES, SLOTS, Slot, has_free_lock, is_alone, take_free_slot


def test_a_slot_is_held_until_its_descriptor_is_closed() -> None:
    first, held_first = take_free_slot()
    second, held_second = take_free_slot()
    assert first != second
    assert not has_free_lock(first)
    os.close(held_first)
    assert has_free_lock(first)
    assert not has_free_lock(second)
    os.close(held_second)


def test_a_cluster_is_not_alone_while_another_slot_is_held() -> None:
    first, held_first = take_free_slot()
    second, held_second = take_free_slot()
    assert not is_alone(first)
    assert not is_alone(second)
    os.close(held_first)
    os.close(held_second)


def test_every_node_that_a_cluster_may_have_has_addresses_of_its_own() -> None:
    nodes = [Slot(0).node(index + 1) for index in range(MOST_NODES)]
    for node in nodes:
        ipaddress.ip_address(node.address)
        assert ipaddress.IPv4Network(node.pod_range).subnet_of(ipaddress.IPv4Network(Slot(0).place.pod_range))
    assert len({node.pod_range for node in nodes}) == MOST_NODES


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
