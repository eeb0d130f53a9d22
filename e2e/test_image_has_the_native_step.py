"""The server's image brings the compiled library, and it works where the pod runs."""

from demo_service import Service
from kube import Kube
from millrace_server.engine import native

ASK = "from millrace_server.engine import native; print(native.library() is not None)"


def test_the_library_serves_in_the_pod_as_it_does_here(kube: Kube, chat: Service) -> None:
    [pod] = kube.pods(chat.namespace, chat.name)
    told = kube.kubectl("exec", pod["metadata"]["name"], "-n", chat.namespace, "--", "python", "-c", ASK)
    assert told.strip() == str(native.library() is not None)
