"""A node that falls silent: its replicas get no more requests, the status says which node it is, and others take their place."""

from collections.abc import Callable
from dataclasses import replace

import httpx

from cluster.provider import Provider
from demo import prompts
from demo_service import Service
from kube import Kube, condition, wait_for
from nodes import APART, another_node, frozen, node_address, node_names, node_of
from traffic import Traffic

GIVEN_UP_SECONDS = 120
"""The local cluster's nodes are NotReady after half a minute of silence; kind has Kubernetes' own 50 seconds."""
ELSEWHERE_SECONDS = 420
"""After a further half minute their pods are replaced; kind: five."""
ANSWERS_IN_A_ROW = 10


def test_the_replicas_of_a_lost_node_are_told_and_replaced_and_the_others_serve(
    serve: Callable[..., Service], kube: Kube, provider: Provider
) -> None:
    alone = serve("alone", autoscaling={"maxReplicas": 1}).wait_ready()
    pair = serve("pair", autoscaling={"mode": "None"}, replicas=2, topologySpreadConstraints=APART).wait_ready()
    [of_alone] = kube.pods(alone.namespace, "alone")
    lost = node_of(of_alone)
    assert sorted(map(node_of, kube.pods(pair.namespace, "pair"))) == sorted(node_names(kube))
    left = another_node(kube, lost)
    alone, pair = (replace(service, node=node_address(kube, left)) for service in (alone, pair))

    def told(service: Service, kind: str) -> tuple[str, str]:
        answer = condition(service.manifest(), kind)
        return answer["status"], answer["reason"]

    with frozen(kube, provider, lost):
        wait_for("the loss is told", lambda: told(alone, "Ready") == ("False", "NodeLost"), seconds=GIVEN_UP_SECONDS, tell=alone.describe)
        message = condition(alone.manifest(), "Ready")["message"]
        assert message.startswith(f"pod {of_alone['metadata']['name']}: its node {lost} no longer answers. ")
        wait_for("beside one that serves", lambda: told(pair, "Reconciling") == ("True", "NodeLost"), seconds=30, tell=pair.describe)
        assert told(pair, "Ready") == ("True", "Serving")
        wait_for("no request goes there any more", lambda: answers_in_a_row(pair), seconds=60, tell=pair.describe)
        with Traffic(pair.url, clients=2) as traffic:
            wait_for("both run elsewhere", lambda: runs_on(kube, alone, pair) == {left}, seconds=ELSEWHERE_SECONDS, tell=pair.describe)
            for service in (alone, pair):
                service.wait_ready()
        assert traffic.answered > 0
        assert traffic.answered == traffic.outcomes.total(), traffic.outcomes
    for service in (alone, pair):
        service.wait_ready()
        question = prompts.CHECKED[0]
        assert service.infer(question.prompt, max_tokens=question.max_tokens)["text"] == question.prompt + question.answer


def runs_on(kube: Kube, *services: Service) -> set[str | None]:
    """The nodes of their pods; None for one that has none yet."""
    return {pod["spec"].get("nodeName") for service in services for pod in kube.pods(service.namespace, service.name)}


def answers_in_a_row(service: Service) -> bool:
    """Each over a connection of its own; a node that hangs accepts them and says nothing."""
    url = f"{service.url}/health"
    try:
        return all(httpx.get(url, timeout=2).status_code == httpx.codes.OK for _ in range(ANSWERS_IN_A_ROW))
    except httpx.TransportError:
        return False
