"""Replicas share their answers in a Redis of the service's own, which is as confined as they are; without it they only lose time."""

from collections.abc import Callable

from demo import prompts
from demo_service import Service
from kube import Kube, Manifest, wait_for
from traffic import Traffic

OWN = {"type": "redis"}


def redis_pods(kube: Kube, service: Service) -> list[Manifest]:
    """Those that answer, and are not on their way out."""
    return [pod for pod in kube.pods(service.namespace, service.name, name="millrace-redis") if _is_ready(pod)]


def _is_ready(pod: Manifest) -> bool:
    return any(each["type"] == "Ready" and each["status"] == "True" for each in pod.get("status", {}).get("conditions", ()))


def is_cached(service: Service, question: prompts.Question) -> bool:
    answer = service.infer(question.prompt, max_tokens=question.max_tokens)
    assert answer["text"] == question.prompt + question.answer
    return bool(answer["cached"])


def test_an_answer_of_one_replica_is_known_to_the_next(serve: Callable[..., Service], kube: Kube) -> None:
    service = serve(cache=OWN, autoscaling={"mode": "None"}, replicas=1).wait_ready()
    wait_for("Redis answers", lambda: redis_pods(kube, service), seconds=120, tell=service.describe)
    question = prompts.CHECKED[0]
    wait_for("the answer is kept", lambda: is_cached(service, question), seconds=30, tell=service.describe)
    [before] = kube.pods(service.namespace, service.name)
    kube.kubectl("delete", "pod", before["metadata"]["name"], "-n", service.namespace)

    def is_replaced() -> bool:
        present = kube.pods(service.namespace, service.name)
        return all(pod["metadata"]["uid"] != before["metadata"]["uid"] and _is_ready(pod) for pod in present) and len(present) == 1

    wait_for("another replica serves", is_replaced, seconds=180, tell=service.describe)
    service.wait_reachable()
    assert is_cached(service, question), "a replica that has never computed it"


def test_a_redis_that_is_killed_costs_no_request_and_comes_back(serve: Callable[..., Service], kube: Kube) -> None:
    service = serve(cache=OWN, autoscaling={"maxReplicas": 1}).wait_ready()
    [redis] = wait_for("Redis answers", lambda: redis_pods(kube, service), seconds=120, tell=service.describe)
    with Traffic(service.url, clients=4) as traffic:
        kube.kubectl("delete", "pod", redis["metadata"]["name"], "-n", service.namespace, "--grace-period=0", "--force")
        answered = traffic.answered
        wait_for("requests go on", lambda: traffic.answered > answered + 20, seconds=60)

        def has_come_back() -> bool:
            return [pod["metadata"]["uid"] for pod in redis_pods(kube, service)] not in ([], [redis["metadata"]["uid"]])

        wait_for("a new Redis answers", has_come_back, seconds=120, tell=service.describe)
        wait_for("answers are kept again", lambda: is_cached(service, prompts.CHECKED[1]), seconds=60, tell=service.describe)
    assert {outcome.partition(" ")[0] for outcome in traffic.outcomes} == {"200"}, traffic.outcomes


def test_a_redis_of_the_user_s_own_is_used_by_its_secret(serve: Callable[..., Service], kube: Kube, namespace: str) -> None:
    """Of two services the second is told the Redis of the first."""
    first = serve("first", cache=OWN, autoscaling={"maxReplicas": 1}).wait_ready()
    wait_for("Redis answers", lambda: redis_pods(kube, first), seconds=120, tell=first.describe)
    made = kube.get("secret", f"first-redis-{first.manifest()['metadata']['uid'][:8]}", "-n", namespace)["data"]
    given = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": namespace}}
    kube.apply({**given, "data": {key: made[key] for key in ("url", "secret")}})
    second = serve("second", cache={"type": "redis", "urlSecret": "theirs"}, autoscaling={"maxReplicas": 1}).wait_ready()
    assert redis_pods(kube, second) == []
    question = prompts.CHECKED[2]
    wait_for("the answer is kept", lambda: is_cached(second, question), seconds=30, tell=second.describe)
