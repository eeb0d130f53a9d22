"""Generated files are fresh, and the check that says so can fail."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from cluster.packages import tool
from millrace_operator import generate
from services import CHECKOUT


@pytest.fixture(scope="module")
def helm() -> str:
    return str(tool("helm"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what `generate` reads and writes."""
    for folder in ("crds", "charts", "manifests"):
        shutil.copytree(CHECKOUT / folder, tmp_path / folder)
    return tmp_path


def test_the_committed_files_are_what_generate_writes(helm: str) -> None:
    assert generate.stale_files(CHECKOUT, helm=helm) == []


@pytest.mark.parametrize(
    "path",
    [
        "crds/inferenceservices.millrace.dev.yaml",
        "crds/README.md",
        "charts/millrace/files/crd.yaml",
        "charts/millrace/values.schema.json",
        "manifests/install.yaml",
    ],
)
def test_an_edited_or_missing_file_is_stale_until_it_is_generated_again(checkout: Path, helm: str, path: str) -> None:
    file = checkout / path
    file.write_text(file.read_text() + "\n")
    assert path in generate.stale_files(checkout, helm=helm)
    generate.generate(checkout, helm=helm)
    assert generate.stale_files(checkout, helm=helm) == []
    if path == "manifests/install.yaml":
        file.unlink()
        assert generate.stale_files(checkout, helm=helm) == [path]


def test_an_edited_template_makes_the_plain_manifests_stale(checkout: Path, helm: str) -> None:
    template = checkout / "charts/millrace/templates/deployment.yaml"
    template.write_text(template.read_text().replace("revisionHistoryLimit: 3", "revisionHistoryLimit: 4"))
    assert generate.stale_files(checkout, helm=helm) == ["manifests/install.yaml"]


def test_a_stale_file_fails_the_check_and_names_the_command(
    checkout: Path, helm: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate, "CHECKOUT", checkout)
    assert generate.main(["--check", "--helm", helm]) == 0
    (checkout / "crds/README.md").write_text("")
    assert generate.main(["--check", "--helm", helm]) == 1
    assert capsys.readouterr().err == "crds/README.md is stale: run `make generate` and commit the result\n"
    assert generate.main(["--helm", helm]) == 0
    assert generate.main(["--check", "--helm", helm]) == 0


def test_the_plain_manifests_say_how_to_put_real_images_into_them() -> None:
    text = (CHECKOUT / "manifests/install.yaml").read_text()
    told = "".join(line.removeprefix("#") for line in text.splitlines(keepends=True) if line.startswith("# "))
    command = told[told.index("sed ") : told.index("|\n")]
    for placeholder, image in (("YOUR-OPERATOR-IMAGE", "host:5000/a/operator:1"), ("YOUR-SERVER-IMAGE", "host:5000/a/server:1")):
        command = command.replace(placeholder, image)
    rendered = subprocess.run(["sh", "-c", command], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
    (deployment,) = [each for each in yaml.safe_load_all(rendered) if each["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "host:5000/a/operator:1"
    assert {"name": "MILLRACE_SERVER_IMAGE", "value": "host:5000/a/server:1"} in container["env"]


def test_without_helm_it_says_how_to_name_one(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert generate.main(["--check", "--helm", str(tmp_path / "helm")]) == 2
    assert "--helm PATH" in capsys.readouterr().err


def test_a_chart_that_does_not_render_is_reported_by_helms_own_words(checkout: Path, helm: str) -> None:
    (checkout / "charts/millrace/templates/broken.yaml").write_text("{{ .Values.image.repository | nonsense }}")
    with pytest.raises(generate.CannotGenerate, match="nonsense"):
        generate.install_manifest(checkout / "charts/millrace", helm=helm)


def test_the_field_reference_tells_every_field_once() -> None:
    fields = [line.split("`")[1] for line in (CHECKOUT / "crds/README.md").read_text().splitlines() if line.startswith("| `")]
    assert len(fields) == len(set(fields))
    assert {"spec.model.name", "spec.autoscaling.targetPerReplica", "spec.tolerations[].key", "status.conditions[].reason"} <= set(fields)
    undescribed = [
        line for line in (CHECKOUT / "crds/README.md").read_text().splitlines() if line.startswith("| `") and line.endswith("|  |")
    ]
    assert undescribed == []
