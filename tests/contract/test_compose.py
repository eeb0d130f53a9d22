"""compose.yaml says what the server, the images and Redis understand, as far as it can be told without Docker."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError

from cluster.images import TARGETS
from cluster.packages import tool
from cluster.process import start, wait_until
from cluster.provider import CHECKOUT
from millrace_server import download
from millrace_server.cache.keys import shared_secret
from millrace_server.settings import DEFAULT_PORT, DEFAULT_PROMETHEUS_PORT, ServerSettings

VARIABLE = re.compile(r"\$\{(?P<name>[A-Z_]+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\}")
PASSWORD = "0a1b2c3d4e5f"


def env_file(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def example(*, password: str = PASSWORD) -> dict[str, str]:
    """What .env.example says once the password is filled in."""
    text = (CHECKOUT / ".env.example").read_text()
    return env_file(text.replace("REDIS_PASSWORD=\n", f"REDIS_PASSWORD={password}\n"))


def compose(variables: dict[str, str]) -> Any:  # noqa: ANN401 - YAML
    """As Docker Compose reads it. Raises KeyError for a variable that must be set."""

    def value(match: re.Match[str]) -> str:
        given = variables.get(match["name"], "")
        if not given and match["kind"] != "-":
            raise KeyError(match["name"])
        return given or match["word"]

    text = (CHECKOUT / "compose.yaml").read_text()
    rest = VARIABLE.sub("", text)
    assert "$" not in rest, "nothing that this test does not understand"
    return yaml.safe_load(VARIABLE.sub(value, text))


@pytest.fixture
def project() -> Any:  # noqa: ANN401 - YAML
    return compose(example())


def server_environment(project: Any) -> dict[str, str]:  # noqa: ANN401 - YAML
    own = {name: str(value) for name, value in project["services"]["server"]["environment"].items()}
    return {**example(), **own}


def test_the_server_is_told_settings_that_there_are_and_takes_them(project: Any) -> None:  # noqa: ANN401 - YAML
    known = {field.alias for field in ServerSettings.model_fields.values()}
    assert set(project["services"]["server"]["environment"]) <= known
    settings = ServerSettings.from_environment(server_environment(project))
    assert (settings.port, settings.prometheus_port) == (DEFAULT_PORT, DEFAULT_PROMETHEUS_PORT)
    assert shared_secret(settings), "answers outlive a restart of the server"


def test_a_forgotten_password_is_asked_for() -> None:
    with pytest.raises(KeyError, match="REDIS_PASSWORD"):
        compose(example(password=""))


def test_the_image_is_the_one_that_the_dockerfile_builds(project: Any) -> None:  # noqa: ANN401 - YAML
    services = project["services"]
    target = services["server"]["build"]["target"]
    assert target in TARGETS
    assert re.search(rf"^FROM \S+ AS {target}$", (CHECKOUT / "Dockerfile").read_text(), re.MULTILINE)
    assert services["model"]["image"] == services["server"]["image"] == f"millrace-{target}"


def test_the_model_is_downloaded_to_where_the_server_reads_it(project: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401 - YAML
    asked: list[tuple[object, ...]] = []
    monkeypatch.setattr(download, "download", lambda *given, **options: asked.append(given))
    model = project["services"]["model"]
    assert model["entrypoint"] == ["python", "-m", download.__name__]
    assert download.main(model["command"]) == 0
    assert asked == [(example()["MODEL_NAME"], "main", Path(server_environment(project)["MODEL_PATH"]))]
    (volume, folder) = model["volumes"][0].split(":")
    assert f"{volume}:{folder}:ro" in project["services"]["server"]["volumes"]
    assert server_environment(project)["MODEL_PATH"].startswith(f"{folder}/")


def test_only_this_machine_reaches_the_ports_and_nobody_the_internal_one(project: Any) -> None:  # noqa: ANN401 - YAML
    ports = {name: service.get("ports", []) for name, service in project["services"].items()}
    assert ports == {
        "model": [],
        "redis": [],
        "server": [f"127.0.0.1:{DEFAULT_PORT}:{DEFAULT_PORT}"],
        "prometheus": ["127.0.0.1:9090:9090"],
    }


def test_every_name_that_is_used_is_there(project: Any) -> None:  # noqa: ANN401 - YAML
    services = project["services"]
    assert set(services["server"]["depends_on"]) <= set(services)
    used = {volume.split(":")[0] for service in services.values() for volume in service.get("volumes", []) if not volume.startswith(".")}
    assert used == set(project["volumes"])
    assert {config["source"] for service in services.values() for config in service.get("configs", [])} == set(project["configs"])


def test_prometheus_scrapes_the_internal_port(project: Any) -> None:  # noqa: ANN401 - YAML
    config = yaml.safe_load(project["configs"]["prometheus"]["content"])
    assert set(config) == {"global", "scrape_configs"}
    (job,) = config["scrape_configs"]
    assert set(job) == {"job_name", "static_configs"}, "/metrics over HTTP, as by default"
    assert job["static_configs"] == [{"targets": [f"server:{DEFAULT_PROMETHEUS_PORT}"]}]
    assert project["services"]["prometheus"]["configs"][0]["target"] == "/etc/prometheus/prometheus.yml", "where its image looks"


def test_a_real_redis_takes_its_configuration_and_the_servers_url(project: Any, tmp_path: Path) -> None:  # noqa: ANN401 - YAML
    command, target = project["services"]["redis"]["command"]
    assert target == project["services"]["redis"]["configs"][0]["target"]
    (tmp_path / "redis.conf").write_text(project["configs"]["redis"]["content"])
    socket = tmp_path / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)]
    child = start("redis", [tool(command), tmp_path / "redis.conf", *options], log=tmp_path / "log")
    try:
        wait_until(socket.exists, "redis listens", seconds=30, children=[child])
        with pytest.raises(AuthenticationError):
            Redis(unix_socket_path=str(socket)).ping()
        with Redis(unix_socket_path=str(socket), password=PASSWORD) as client:
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "allkeys-lru"}
            assert client.config_get("save") == {"save": ""}
    finally:
        child.stop()
    settings = ServerSettings.from_environment(server_environment(project))
    assert settings.redis_url == f"redis://:{PASSWORD}@redis:6379/0", "Redis' own port, which its configuration leaves alone"
