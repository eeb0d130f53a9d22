"""Writes what is derived from `api.py` and `chart.py`, so that nobody edits it by hand.

    python -m millrace_operator.generate [--check] [--helm PATH]

Writes the CRD (also the chart's copy), its field reference, the schema of the chart's values and, by `helm template`, the plain
manifests. With `--check` it writes nothing and fails when a file is stale. Needs a checkout and helm 3.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from millrace_operator.chart import values_schema
from millrace_operator.crd import crd, reference
from millrace_operator.manifest import Manifest

CHECKOUT = Path(__file__).parents[2]
COMMAND = "make generate"
HEADER = f"# Written by `{COMMAND}`; do not edit.\n"
INSTALL_HEADER = f"""{HEADER}#
# No public registry has the images millrace/operator and millrace/server: they stand for yours. Build them and push them to your
# registry with `make images-push REGISTRY=registry.example.com/team`, which prints their names, and put these in their places:
#
#   sed -e 's|millrace/operator:[^ ]*|YOUR-OPERATOR-IMAGE|' -e 's|millrace/server:[^ ]*|YOUR-SERVER-IMAGE|' manifests/install.yaml |
#     kubectl apply --server-side -f -
"""
INSTALL_NAMESPACE = "millrace-system"
OLDEST_KUBERNETES = "1.30.0"
"""What the chart is rendered for, whatever version a build of helm takes for granted."""


class CannotGenerate(RuntimeError):
    """A sentence for the person at the terminal."""


class _PlainDumper(yaml.SafeDumper):
    """YAML without anchors, which no reader of manifests expects."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def yaml_text(*manifests: Manifest) -> str:
    return "---\n".join(yaml.dump(manifest, Dumper=_PlainDumper, sort_keys=False, width=140, allow_unicode=True) for manifest in manifests)


def derived_files() -> dict[str, str]:
    """Path in the checkout → its text, for everything but what helm renders."""
    definition = HEADER + yaml_text(crd())
    return {
        "crds/inferenceservices.millrace.dev.yaml": definition,
        "crds/README.md": reference(),
        "charts/millrace/files/crd.yaml": definition,
        "charts/millrace/values.schema.json": json.dumps(values_schema(), indent=2, ensure_ascii=False) + "\n",
    }


def install_manifest(chart: Path, *, helm: str) -> str:
    """The chart with its default values, for `kubectl apply -f`."""
    namespace: Manifest = {
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": INSTALL_NAMESPACE, "labels": {"pod-security.kubernetes.io/enforce": "restricted"}},
    }
    return INSTALL_HEADER + yaml_text(namespace) + render(chart, helm=helm, namespace=INSTALL_NAMESPACE)


def render(chart: Path, *, helm: str, namespace: str, values: Sequence[str] = ()) -> str:
    """`helm template`; `values` are words such as `replicas=2`. Raises CannotGenerate."""
    settings = [word for value in values for word in ("--set", value)]
    command = [helm, "template", "millrace", str(chart), "--namespace", namespace, "--kube-version", OLDEST_KUBERNETES, *settings]
    with tempfile.TemporaryDirectory() as home:
        environment = {**os.environ, "HELM_CACHE_HOME": home, "HELM_CONFIG_HOME": home, "HELM_DATA_HOME": home, "KUBECONFIG": ""}
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)  # noqa: S603 - words, no shell
    if result.returncode != 0:
        raise CannotGenerate(f"helm template failed: {result.stderr.strip()}")
    return result.stdout


def generate(checkout: Path, *, helm: str) -> None:
    for path, text in derived_files().items():
        (checkout / path).parent.mkdir(parents=True, exist_ok=True)
        (checkout / path).write_text(text)
    # The chart includes files written above.
    (checkout / "manifests/install.yaml").write_text(install_manifest(checkout / "charts/millrace", helm=helm))


def stale_files(checkout: Path, *, helm: str) -> list[str]:
    """Files whose text is not what `generate` would write."""
    wanted = derived_files()
    wanted["manifests/install.yaml"] = install_manifest(checkout / "charts/millrace", helm=helm)
    return [path for path, text in wanted.items() if not (checkout / path).is_file() or (checkout / path).read_text() != text]


def find_helm(stated: str | None) -> str:
    """Raises CannotGenerate."""
    helm = shutil.which(stated or os.environ.get("HELM") or "helm")
    if helm is None:
        raise CannotGenerate("helm is not found: put helm 3 on PATH, set HELM, or pass --helm PATH")
    return helm


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m millrace_operator.generate", description="Writes the derived files.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a file is stale")
    parser.add_argument("--helm", metavar="PATH", help="helm 3; default: $HELM, else helm on PATH")
    options = parser.parse_args(arguments)
    try:
        helm = find_helm(options.helm)
        if not options.check:
            generate(CHECKOUT, helm=helm)
            return 0
        stale = stale_files(CHECKOUT, helm=helm)
    except CannotGenerate as error:
        sys.stderr.write(f"generate: {error}\n")
        return 2
    for path in stale:
        sys.stderr.write(f"{path} is stale: run `{COMMAND}` and commit the result\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
