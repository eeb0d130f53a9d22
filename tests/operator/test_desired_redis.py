"""The Redis of a service: what it gets, what reaches it, and that the server really can use it as it is set up."""

import asyncio
import json
import secrets
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from cluster.packages import tool
from cluster.process import start, wait_until
from millrace_operator.desired import children, redis_secret
from millrace_operator.manifest import Manifest
from millrace_operator.names import child_labels
from millrace_server.cache.redis import RedisStore
from services import PLATFORM, UID, service

OWN = {"type": "redis"}
SECRET = "chat-redis-7f3c1f0e"


def wish(**spec: Any) -> dict[str, Manifest]:  # noqa: ANN401 - fields of a spec
    return {f"{child['kind']}/{child['metadata']['name']}": child for child in children(service(**spec), platform=PLATFORM)}


def server(**spec: Any) -> Manifest:  # noqa: ANN401 - fields of a spec
    (container,) = wish(**spec)["Deployment/chat"]["spec"]["template"]["spec"]["containers"]
    return dict(container)


def secret_variables(container: Manifest) -> dict[str, Manifest]:
    return {each["name"]: each["valueFrom"]["secretKeyRef"] for each in container["env"] if "valueFrom" in each}


@pytest.mark.parametrize("cache", [{}, {"type": "memory"}, {"type": "none"}, {"type": "redis", "urlSecret": "theirs"}])
def test_only_a_service_without_a_redis_of_its_user_s_gets_one(cache: Manifest) -> None:
    assert "Deployment/chat-redis" in wish(cache=OWN)
    assert not any("redis" in name for name in wish(cache=cache))


def test_the_server_gets_the_secrets_from_the_secret_of_this_very_service() -> None:
    container = server(cache=OWN)
    assert {"name": "CACHE_TYPE", "value": "redis"} in container["env"]
    assert secret_variables(container) == {
        "REDIS_URL": {"name": SECRET, "key": "url"},
        "CACHE_SECRET": {"name": SECRET, "key": "secret"},
    }
    made = redis_secret(service(cache=OWN), password="p", seal="s")
    assert made["metadata"]["name"] == SECRET
    assert made["metadata"]["ownerReferences"][0]["uid"] == UID
    assert made["immutable"] is True


def test_a_user_s_redis_may_do_without_a_seal_but_not_without_an_address() -> None:
    assert secret_variables(server(cache={"type": "redis", "urlSecret": "theirs"})) == {
        "REDIS_URL": {"name": "theirs", "key": "url"},
        "CACHE_SECRET": {"name": "theirs", "key": "secret", "optional": True},
    }


def test_a_server_without_redis_knows_no_secret() -> None:
    assert secret_variables(server()) == {}


def test_clients_and_scrapers_are_never_led_to_redis() -> None:
    everything = wish(cache=OWN)
    labels = everything["Deployment/chat-redis"]["spec"]["template"]["metadata"]["labels"]
    for name in ("chat", "chat-metrics"):
        assert not everything[f"Service/{name}"]["spec"]["selector"].items() <= labels.items()
    assert not everything["Deployment/chat"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert everything["Service/chat-redis"]["spec"]["selector"].items() <= labels.items()
    assert not everything["Service/chat-redis"]["spec"]["selector"].items() <= child_labels("chat").items()


def test_the_words_by_which_redis_starts_hold_no_secret() -> None:
    assert "secretKeyRef" not in json.dumps(wish(cache=OWN)["Deployment/chat-redis"])


def test_the_credentials_of_the_registry_reach_redis_too() -> None:
    pod = wish(cache=OWN, imagePullSecrets=[{"name": "registry"}])["Deployment/chat-redis"]["spec"]["template"]["spec"]
    assert pod["imagePullSecrets"] == [{"name": "registry"}]


def test_the_server_can_use_the_redis_that_it_gets_and_nobody_else_can(tmp_path: Path) -> None:
    """A real redis-server with the pod's own words and the Secret's own file."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    made = redis_secret(service(cache=OWN), password=secrets.token_hex(32), seal="s" * 64)["stringData"]
    (tmp_path / "users.acl").write_text(made["users.acl"])
    (container,) = wish(cache=OWN)["Deployment/chat-redis"]["spec"]["template"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    words = [word.replace(mount["mountPath"], str(tmp_path)) for word in container["args"]]
    (program,) = container["command"]
    child = start(program, [tool(program), "--port", str(port), "--bind", "127.0.0.1", *words], log=tmp_path / "log")
    try:
        cli, *ping = container["livenessProbe"]["exec"]["command"]
        probe = [str(tool(cli)), "-p", str(port), *ping]
        wait_until(lambda: subprocess.run(probe, check=False, capture_output=True).returncode == 0, "the probe is content", seconds=30)
        assert subprocess.run(probe, check=True, capture_output=True).stdout.strip() == b"NOAUTH Authentication required."
        url = made["url"].replace("chat-redis:6379", f"127.0.0.1:{port}")
        assert asyncio.run(what_is_kept(url)) == b"answer"
        with Redis.from_url(url) as client:
            with pytest.raises(NoPermissionError):
                client.flushall()
            with pytest.raises(NoPermissionError):
                client.set("of-somebody-else", "x")
        with Redis(port=port) as stranger, pytest.raises(AuthenticationError):
            stranger.get("millrace:x")
    finally:
        child.stop()


async def what_is_kept(url: str) -> object:
    """What the server's own client reads after it wrote."""
    store = RedisStore(url, ttl=60, secret=b"s" * 64)
    try:
        written = store.put(b"key", b"answer")
        assert written is not None
        await written
        return await store.get(b"key")
    finally:
        await store.close()
