"""The Redis of a service on a real API server: its Secret is made once and never looked at, whatever happens to it."""

import pytest

from millrace_operator.manifest import Manifest
from operators import Api, Process, cpu_service, eventually

pytestmark = pytest.mark.apiserver
OWN = {"type": "redis"}
KINDS = ("deployments", "networkpolicies", "services")


def secret_name(api: Api) -> str:
    return f"chat-redis-{api.service()['metadata']['uid'][:8]}"


def secret(api: Api) -> Manifest:
    found = api.get("secrets", secret_name(api))
    assert found is not None
    return found


def has_redis(api: Api) -> bool:
    return all(api.has(kind, "chat-redis") for kind in KINDS)


def test_a_service_that_wants_redis_gets_it_with_a_secret_of_its_own(api: Api, shared_operator: Process) -> None:
    uid = api.create(cpu_service(cache=OWN))["metadata"]["uid"]
    eventually(lambda: has_redis(api) and api.is_complete(), "Redis and its Secret exist")
    made = secret(api)
    assert made["metadata"]["ownerReferences"][0]["uid"] == uid
    assert made["immutable"] is True
    assert set(made["data"]) == {"url", "secret", "users.acl"}
    assert len(set(made["data"].values())) == 3


def test_the_secret_is_neither_written_nor_replaced_by_what_comes_later(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(cache=OWN))
    eventually(lambda: has_redis(api) and api.is_complete(), "Redis and its Secret exist")
    first = secret(api)
    api.delete(api.path("deployments", "chat-redis"))
    eventually(lambda: api.has("deployments", "chat-redis"), "Redis is back")
    api.edit({"spec": {"cache": {"type": "memory"}}})
    eventually(lambda: not any(api.has(kind, "chat-redis") for kind in KINDS), "Redis is no longer wanted")
    api.edit({"spec": {"cache": {"type": "redis"}}})
    eventually(lambda: has_redis(api), "Redis is wanted again")
    assert secret(api) == first


def test_a_secret_that_was_deleted_comes_back_with_its_redis(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(cache=OWN))
    eventually(lambda: has_redis(api) and api.is_complete(), "Redis and its Secret exist")
    api.delete(api.path("secrets", secret_name(api)))
    api.delete(api.path("deployments", "chat-redis"))
    eventually(lambda: api.has("secrets", secret_name(api)), "the Secret is made with the next Redis")


def test_redis_waits_for_a_secret_that_cannot_be_made(api: Api, shared_operator: Process) -> None:
    quotas = f"/api/v1/namespaces/{api.namespace}/resourcequotas"
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "none"}, "spec": {"hard": {"count/secrets": "0"}}}
    assert api.client.post(quotas, json=quota).status_code == 201
    eventually(lambda: api.client.get(f"{quotas}/none").json().get("status", {}).get("hard"), "the quota is enforced")
    api.create(cpu_service(cache=OWN))
    eventually(lambda: api.condition("Ready") == ("False", "QuotaExceeded"), "the quota is named")
    assert "Secret 'chat-redis-" in api.message("Ready")
    assert api.is_complete()
    assert not api.has("deployments", "chat-redis")
    api.delete(f"{quotas}/none")
    eventually(lambda: has_redis(api) and api.condition("Ready") == ("False", "Starting"), "it heals without an edit")
    assert api.has("secrets", secret_name(api))


def test_a_service_made_again_does_not_inherit_the_secret(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(cache=OWN))
    eventually(lambda: has_redis(api) and api.is_complete(), "Redis and its Secret exist")
    old = secret(api)
    api.delete(f"{api.root}/chat")
    uid = api.create(cpu_service(cache=OWN))["metadata"]["uid"]
    eventually(lambda: api.has("secrets", f"chat-redis-{uid[:8]}"), "a Secret of its own")
    assert secret(api)["data"] != old["data"]


def test_the_log_of_the_operator_holds_no_password(api: Api, shared_operator: Process) -> None:
    api.create(cpu_service(cache=OWN))
    eventually(lambda: has_redis(api) and api.is_complete(), "Redis and its Secret exist")
    assert "redis://" not in shared_operator.log.read_text()


def test_a_redis_that_is_not_ready_is_told_and_lowers_nothing(api: Api, shared_operator: Process) -> None:
    def pods() -> list[Manifest]:
        path = f"/api/v1/namespaces/{api.namespace}/pods"
        found = api.client.get(path, params={"labelSelector": "app.kubernetes.io/name=millrace-redis"}).json()["items"]
        return list(found)

    api.create(cpu_service(cache=OWN))
    eventually(lambda: has_redis(api) and api.condition("CacheDegraded") == ("True", "RedisNotReady"), "it is told")
    assert "nothing fails" in api.message("CacheDegraded")
    assert api.condition("Stalled") == ("False", "Progressing")
    eventually(pods, "its pod exists")
    # There is no kubelet to say so.
    serving = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    api.patch(f"/api/v1/namespaces/{api.namespace}/pods/{pods()[0]['metadata']['name']}/status", {"status": serving})
    eventually(lambda: api.condition("CacheDegraded") == ("False", "RedisServes"), "its return is told")
    api.edit({"spec": {"cache": {"type": "memory"}}})
    eventually(lambda: api.condition("CacheDegraded") == ("", ""), "without a Redis there is nothing to tell")
