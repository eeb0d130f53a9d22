"""An applied service answers through the cluster's Service with text that the model really generated."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from demo import prompts
from demo_service import Service
from kube import Kube, Refused, wait_for

TOGETHER = 32


def test_the_demo_model_answers_prompts_it_was_never_trained_on(chat: Service) -> None:
    for question in prompts.CHECKED:
        answer = chat.infer(question.prompt, max_tokens=question.max_tokens)
        assert answer["text"] == question.prompt + question.answer


def test_requests_of_different_lengths_at_once_are_answered_as_one_by_one(chat: Service) -> None:
    asked = [(question.prompt, length) for length in (7, 60) for question in prompts.CHECKED]
    assert len(asked) == TOGETHER
    alone = [chat.infer(prompt, max_tokens=length)["text"] for prompt, length in asked]
    with ThreadPoolExecutor(TOGETHER) as clients:
        together = list(clients.map(lambda each: chat.infer(each[0], max_tokens=each[1])["text"], asked))
    assert together == alone


def test_the_service_name_answers_inside_the_cluster(chat: Service, kube: Kube) -> None:
    [pod] = kube.pods(chat.namespace, chat.name)
    url = kube.get("infsvc", chat.name, "-n", chat.namespace)["status"]["url"]
    ask = f"import urllib.request as r; print(r.urlopen('{url}/health', timeout=5).status)"

    def answers() -> bool:
        with suppress(Refused):  # DNS, too, may know the Service later than it is Ready
            return kube.kubectl("exec", pod["metadata"]["name"], "-n", chat.namespace, "--", "python", "-c", ask).strip() == "200"
        return False

    wait_for(f"{url} answers from a pod", answers, seconds=10)


def test_two_services_side_by_side_do_not_mix(serve: Callable[..., Service], kube: Kube) -> None:
    first, second = serve("first"), serve("second")
    first.wait_ready()
    second.wait_ready()
    assert first.url != second.url
    for service in (first, second):
        slices = kube.get("endpointslices", "-n", service.namespace, "-l", f"kubernetes.io/service-name={service.name}")["items"]
        [pod] = kube.pods(service.namespace, service.name)
        assert [endpoint["addresses"] for each in slices for endpoint in each["endpoints"]] == [[pod["status"]["podIP"]]]
    question = prompts.CHECKED[0]
    assert second.infer(question.prompt, max_tokens=question.max_tokens)["text"] == question.prompt + question.answer
    kube.kubectl("delete", "infsvc", "first", "-n", first.namespace)
    wait_for("the first is gone", lambda: not kube.exists("deployment", "first", "-n", first.namespace), seconds=60)
    assert second.infer(question.prompt, max_tokens=question.max_tokens)["text"] == question.prompt + question.answer
