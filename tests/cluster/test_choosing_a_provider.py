"""Which cluster is used is never a surprise, and an unknown one is never touched."""

import os
from pathlib import Path

import pytest

from cluster import provider
from cluster.kind import Kind
from cluster.kubeconfig import Kubeconfig
from cluster.local import provider as local_provider
from cluster.local.outer import Outer
from cluster.local.provider import Local
from cluster.provider import NoCluster, choose

KUBECONFIG = "apiVersion: v1\nkind: Config\ncontexts: [{name: staging, context: {}}]\n"


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    file = tmp_path / "config"
    file.write_text(KUBECONFIG)
    return file


@pytest.mark.parametrize(("docker_runs", "chosen"), [(True, Kind), (False, Local)])
def test_kind_is_chosen_exactly_where_docker_runs(
    docker_runs: bool, chosen: type[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "docker_runs", lambda: docker_runs)
    assert isinstance(choose({}, state=tmp_path), chosen)


def test_a_kubeconfig_that_merely_lies_around_is_not_used(kubeconfig: Path, tmp_path: Path) -> None:
    assert not isinstance(choose({"KUBECONFIG": str(kubeconfig)}, state=tmp_path), Kubeconfig)


def test_a_context_named_on_purpose_is_used(kubeconfig: Path, tmp_path: Path) -> None:
    named = {"MILLRACE_PROVIDER": "kubeconfig", "KUBECONFIG": str(kubeconfig), "MILLRACE_CONTEXT": "staging"}
    chosen = choose(named, state=tmp_path)
    assert isinstance(chosen, Kubeconfig)
    assert chosen.context == "staging"


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "needs KUBECONFIG"),
        ({"MILLRACE_CONTEXT": ""}, "MILLRACE_CONTEXT"),
        ({"MILLRACE_CONTEXT": "production"}, "MILLRACE_CONTEXT=production is not in .*staging"),
    ],
)
def test_an_unnamed_or_unknown_context_is_refused(environment: dict[str, str], reason: str, kubeconfig: Path, tmp_path: Path) -> None:
    file = {"KUBECONFIG": str(kubeconfig)} if environment else {}
    with pytest.raises(NoCluster, match=reason):
        choose({"MILLRACE_PROVIDER": "kubeconfig", **file, **environment}, state=tmp_path)


def test_an_unknown_provider_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(NoCluster, match="none of local, kind, kubeconfig"):
        choose({"MILLRACE_PROVIDER": "minikube"}, state=tmp_path)


def test_a_cluster_of_ones_own_has_the_nodes_that_it_has(kubeconfig: Path, tmp_path: Path) -> None:
    named = {"MILLRACE_PROVIDER": "kubeconfig", "KUBECONFIG": str(kubeconfig), "MILLRACE_CONTEXT": "staging"}
    with pytest.raises(NoCluster, match="3 nodes are asked for"):
        choose(named, state=tmp_path, nodes=3)


def test_a_cluster_that_runs_has_its_number_of_nodes_and_refuses_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs is this process."""
    monkeypatch.setattr(local_provider, "why_not", lambda: None)
    state = Local(tmp_path).state
    state.mkdir()
    Outer.of(os.getpid(), slot=0, nodes=3).record(state)
    assert Local(tmp_path).nodes == 3
    with pytest.raises(NoCluster, match="has 3 nodes, not 1: take it down first"):
        Local(tmp_path, nodes=1).up()


@pytest.mark.parametrize("nodes", [0, 201])
def test_a_number_of_nodes_that_cannot_be_had_is_refused(nodes: int, tmp_path: Path) -> None:
    with pytest.raises(NoCluster, match="1 to 200"):
        Local(tmp_path, nodes=nodes)


def test_without_root_local_says_so_and_names_what_would_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NoCluster, match=r"need root.*provider `kind` works"):
        Local(tmp_path).up()
