"""The lines that `make images-push` ends with install the images that were pushed. They are run on a cluster by e2e/test_install.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from cluster import images, install_lines, versions
from cluster.packages import tool
from cluster.provider import CHECKOUT

OPERATOR = "registry.example.com:5000/team/millrace-operator:0123456789012345"
SERVER = "registry.example.com:5000/team/millrace-server:9876543210987654"
"""Tags of digits alone, as one hash in two thousand is."""


def used(rendered: str) -> tuple[str, str]:
    """The operator's image and the server's, as the operator's Deployment names them."""
    [deployment] = [each for each in yaml.safe_load_all(rendered) if each and each["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value") for each in container["env"]}
    return container["image"], variables["MILLRACE_SERVER_IMAGE"]


def test_the_manifests_line_puts_both_images_in() -> None:
    line, _, apply = install_lines.by_manifests(operator=OPERATOR, server=SERVER).partition(" | ")
    done = subprocess.run(["bash", "-c", line], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert used(done.stdout) == (OPERATOR, SERVER)
    assert apply == "kubectl apply --server-side -f -"


def test_the_charts_line_puts_both_images_in() -> None:
    line = install_lines.by_chart(operator=OPERATOR, server=SERVER)
    rendering = line.replace("helm upgrade --install", f"{tool('helm')} template --kube-version={versions.KUBERNETES}")
    done = subprocess.run(["bash", "-c", rendering], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert used(done.stdout) == (OPERATOR, SERVER)


@pytest.mark.parametrize("registry", ["", "https://registry.example.com/team"])
def test_a_registry_that_is_none_is_refused_before_anything_is_built(registry: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        images.main(["--push", registry])
    assert f"REGISTRY={registry} must be a host and a path" in capsys.readouterr().err


def test_an_image_build_without_its_tools_is_a_sentence(tmp_path: Path) -> None:
    environment = {"PATH": "", "PYTHONPATH": str(CHECKOUT / "e2e"), "MILLRACE_CACHE": str(tmp_path), "MILLRACE_PROVIDER": "local"}
    done = subprocess.run([sys.executable, "-m", "cluster.images"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("images: ")
    assert "Traceback" not in done.stderr


def test_a_push_ends_with_both_lines_for_what_was_pushed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pushed = []
    monkeypatch.setattr(images, "build", lambda target: f"localhost/millrace-{target}:1")
    monkeypatch.setattr(images, "push_from_local_store", lambda image, target, *, plain_http: pushed.append((image, target, plain_http)))
    images.main(["--push", "registry.example.com/team/"])
    names = {target: f"registry.example.com/team/millrace-{target}:1" for target in images.TARGETS}
    assert pushed == [(f"localhost/millrace-{target}:1", name, False) for target, name in names.items()]
    assert capsys.readouterr().out.splitlines()[2:] == [
        "install the chart:",
        f"  {install_lines.by_chart(**names)}",
        "or the manifests:",
        f"  {install_lines.by_manifests(**names)}",
    ]
