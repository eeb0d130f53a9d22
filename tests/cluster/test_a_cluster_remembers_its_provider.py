"""`down`, `status` and `load` go to whoever made the cluster, whatever would be chosen by now."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import provider
from cluster.control_plane import ControlPlane
from cluster.kind import Kind
from cluster.kubeconfig import Kubeconfig
from cluster.local.provider import Local
from cluster.provider import CHECKOUT, NoCluster, choose, forget, present, record, recorded, wanted


@pytest.fixture
def _docker_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provider, "docker_runs", lambda: True)


def test_no_cluster_has_no_provider(tmp_path: Path) -> None:
    assert present({}, state=tmp_path / "absent") is None


@pytest.mark.usefixtures("_docker_runs")
@pytest.mark.parametrize("environment", [{}, {"MILLRACE_PROVIDER": "kind"}])
def test_a_docker_that_was_started_since_changes_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    record(tmp_path, "local")
    assert isinstance(present(environment, state=tmp_path), Local)
    assert isinstance(choose({}, state=tmp_path), Local)
    forget(tmp_path)
    assert present(environment, state=tmp_path) is None
    assert isinstance(choose(environment, state=tmp_path), Kind)


def test_a_second_provider_is_refused_while_the_first_ones_cluster_is_here(tmp_path: Path) -> None:
    record(tmp_path, "kind")
    with pytest.raises(NoCluster, match=r"MILLRACE_PROVIDER=local, but .* made by `kind`: .*make clean"):
        choose({"MILLRACE_PROVIDER": "local"}, state=tmp_path)
    assert wanted({"MILLRACE_PROVIDER": "kind"}, state=tmp_path) == "kind"


def test_a_kind_cluster_is_not_forgotten_while_docker_is_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, "kind")
    monkeypatch.setattr("cluster.kind.docker_runs", lambda: False)
    kind = present({}, state=tmp_path)
    assert kind is not None
    with pytest.raises(NoCluster, match=r"needs a Docker engine.*start it"):
        kind.down()
    assert recorded(tmp_path) == "kind"


@pytest.mark.apiserver
def test_a_cluster_of_ones_own_is_found_again_and_taken_down_without_its_variables(apiserver: ControlPlane, tmp_path: Path) -> None:
    context = subprocess.run(
        ["grep", "-oP", r"current-context: \K.*", str(apiserver.kubeconfig)], capture_output=True, text=True, check=True
    ).stdout.strip()
    named = {"MILLRACE_PROVIDER": "kubeconfig", "KUBECONFIG": str(apiserver.kubeconfig), "MILLRACE_CONTEXT": context}
    choose(named, state=tmp_path).up()
    found = present({}, state=tmp_path)
    assert isinstance(found, Kubeconfig)
    assert found.context == context
    with pytest.raises(NoCluster, match="needs KUBECONFIG"):
        choose({}, state=tmp_path)
    found.down()
    assert present({}, state=tmp_path) is None
    assert not (tmp_path / "kubeconfig").exists()


@pytest.mark.parametrize("command", [["load", "localhost/image:1"], ["kubectl", "get", "nodes"]])
def test_what_needs_a_cluster_says_how_to_get_one(command: list[str], tmp_path: Path) -> None:
    shutil.copytree(CHECKOUT / "e2e" / "cluster", tmp_path / "e2e" / "cluster", ignore=shutil.ignore_patterns("__pycache__"))
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "e2e")}
    done = subprocess.run(
        [sys.executable, "-m", "cluster", *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr == "cluster: this checkout has no cluster; bring one up with `make cluster`\n"


def test_clean_without_the_environment_fails_exactly_when_a_cluster_is_up(tmp_path: Path) -> None:
    shutil.copy(CHECKOUT / "Makefile", tmp_path)

    def clean() -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "--no-print-directory", "clean"], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert clean().returncode == 0
    record(tmp_path / ".cluster", "local")
    refused = clean()
    assert refused.returncode != 0
    assert refused.stdout == "a cluster is up, and .venv, which could take it down, is gone: make env, then make clean\n"
    forget(tmp_path / ".cluster")
    assert clean().returncode == 0
