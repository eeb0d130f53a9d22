"""Go programs built from their modules, once per version, with visible progress. Nothing is downloaded ready-made."""

import json
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from cluster import cache, versions
from cluster.progress import step

_OWN_MODULES = Path(__file__).parent / "go"
_VERSION_PACKAGE = "k8s.io/component-base/version"
_MAJOR, _MINOR, _ = versions.KUBERNETES.removeprefix("v").split(".")


class CannotBuild(Exception):
    """Go is absent, too old, or the build failed; the message says what to do."""


@dataclass(frozen=True)
class Module:
    """A Go module of which commands are built."""

    name: str
    version: str
    commands: dict[str, str]
    """Program → Go package."""
    link_flags: str
    tags: str = ""
    source: Path | None = field(default=None)
    """A folder with our own go.mod; None means `go install PACKAGE@VERSION`."""
    path: str = ""
    """Of one whose go.mod replaces others, which `go install` refuses: its commands are folders, built in a copy of its source."""
    texts: dict[str, str] = field(default_factory=dict)
    """Of files in that copy, in place of its own."""


KUBERNETES = Module(
    name="kubernetes",
    version=versions.KUBERNETES,
    commands={
        name: f"k8s.io/kubernetes/cmd/{name}"
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
    },
    # Without these the version is v0.0.0 and clients misbehave.
    link_flags=(
        f"-s -w -X {_VERSION_PACKAGE}.gitVersion={versions.KUBERNETES} -X {_VERSION_PACKAGE}.gitMajor={_MAJOR}"
        f" -X {_VERSION_PACKAGE}.gitMinor={_MINOR} -X {_VERSION_PACKAGE}.gitTreeState=clean"
        f" -X k8s.io/client-go/pkg/version.gitVersion={versions.KUBERNETES}"
    ),
    tags="providerless,dockerless",
    source=_OWN_MODULES / "kubernetes",
)
COREDNS = Module(name="coredns", version=versions.COREDNS, commands={"coredns": "github.com/coredns/coredns"}, link_flags="-s -w")
HELM = Module(
    name="helm",
    version=versions.HELM,
    commands={"helm": "helm.sh/helm/v3/cmd/helm"},
    link_flags=f"-s -w -X helm.sh/helm/v3/internal/version.version={versions.HELM}",
)
METRICS_SERVER = Module(
    name="metrics-server",
    version=versions.METRICS_SERVER,
    commands={"metrics-server": "sigs.k8s.io/metrics-server/cmd/metrics-server"},
    link_flags=f"-s -w -X sigs.k8s.io/metrics-server/pkg/version.gitVersion={versions.METRICS_SERVER}",
)
KEDA = Module(
    name="keda",
    version=versions.KEDA,
    commands={"keda": "./cmd/operator", "keda-adapter": "./cmd/adapter"},
    link_flags="-s -w",
    path="github.com/kedacore/keda/v2",
)
PROMETHEUS = Module(
    name="prometheus",
    version=versions.PROMETHEUS,
    commands={"prometheus": "./cmd/prometheus", "promtool": "./cmd/promtool"},
    link_flags="-s -w",
    path="github.com/prometheus/prometheus",
    # Of the two dozen clouds in which it would look for targets only Kubernetes: the others are most of the build.
    texts={"plugins/plugins.go": 'package plugins\n\nimport _ "github.com/prometheus/prometheus/discovery/kubernetes"\n'},
)
PROMETHEUS_OPERATOR = Module(
    name="prometheus-operator",
    version=versions.PROMETHEUS_OPERATOR,
    commands={
        "prometheus-operator": "github.com/prometheus-operator/prometheus-operator/cmd/operator",
        "prometheus-config-reloader": "github.com/prometheus-operator/prometheus-operator/cmd/prometheus-config-reloader",
    },
    link_flags="-s -w",
    source=_OWN_MODULES / "prometheus-operator",
)
KIND = Module(name="kind", version=versions.KIND, commands={"kind": "sigs.k8s.io/kind"}, link_flags="-s -w")
_MODULES = (KUBERNETES, COREDNS, HELM, METRICS_SERVER, KEDA, PROMETHEUS, PROMETHEUS_OPERATOR, KIND)
MODULES = {program: module for module in _MODULES for program in module.commands}


def binary(program: str) -> Path:
    """The path of one program of MODULES, built when absent."""
    module = MODULES[program]
    folder = cache.root() / f"{module.name}-{module.version}" / "bin"
    built = folder / program
    if built.exists():
        return built
    with cache.locked(f"{module.name}-{module.version}"):
        if built.exists():
            return built
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
            _build(module, program, Path(partial))
            (Path(partial) / program).rename(built)
    return built


def module_folder(module: str, version: str) -> Path:
    """The unpacked source of a Go module, for what it brings besides programs. Raises CannotBuild."""
    done = subprocess.run([_go(), "mod", "download", "-json", f"{module}@{version}"], capture_output=True, text=True, check=False, cwd="/")
    if done.returncode:
        raise CannotBuild(f"`go mod download {module}@{version}` ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return Path(json.loads(done.stdout)["Dir"])


def _build(module: Module, program: str, into: Path) -> None:
    go = _go()
    position = f"({list(module.commands).index(program) + 1}/{len(module.commands)})"
    flags = ["-trimpath", "-ldflags", module.link_flags, *(["-tags", module.tags] if module.tags else [])]
    environment = {**os.environ, "CGO_ENABLED": "0", "GOBIN": str(into)}
    if module.path:
        with step(f"build {program} {module.version} {position}"), tempfile.TemporaryDirectory(prefix="millrace-source-") as source:
            # What Go keeps is read-only, and so would be what is copied with its modes.
            shutil.copytree(module_folder(module.path, module.version), source, dirs_exist_ok=True, copy_function=shutil.copyfile)
            for file, text in module.texts.items():
                (Path(source) / file).write_text(text)
            _run([go, "build", *flags, "-o", str(into / program), module.commands[program]], environment, Path(source))
        return
    if module.source is None:
        with step(f"build {program} {module.version} {position}"):
            _run([go, "install", *flags, f"{module.commands[program]}@{module.version}"], environment, into)
        return
    downloaded = cache.root() / f"{module.name}-{module.version}" / "modules-downloaded"
    if not downloaded.exists():
        with step(f"modules of {module.name} {module.version}"):
            _run([go, "mod", "download"], environment, module.source)
        downloaded.touch()
    with step(f"build {program} {module.version} {position}"):
        _run([go, "build", *flags, "-o", str(into / program), module.commands[program]], environment, module.source)


def _go() -> str:
    go = shutil.which("go")
    wanted = ".".join(map(str, versions.MINIMUM_GO))
    if go is None:
        raise CannotBuild(
            f"kubectl, helm and the like are built from their Go modules, and no `go` is on PATH: install Go {wanted} or newer"
        )
    found = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, check=True).stdout.strip()
    match = re.match(r"go(\d+)\.(\d+)", found)
    if match is None or (int(match[1]), int(match[2])) < versions.MINIMUM_GO:
        raise CannotBuild(f"{go} is {found}; kubectl, helm and the like are built with Go {wanted} or newer: put one first on PATH")
    return go


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise CannotBuild(f"`{' '.join(command)}` ended with {done.returncode}:\n{done.stdout[-4000:]}")
