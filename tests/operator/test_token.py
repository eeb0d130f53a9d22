"""The token of the operator's account is replaced while it runs, as the kubelet does, and the old one is refused from then on."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from operators import Api, Process, cpu_service, eventually
from rights import ACCOUNT, installed, requests

pytestmark = pytest.mark.apiserver

CREDENTIAL = "authentication.kubernetes.io/credential-id"
AS_IN_A_POD = """
from kubernetes.aio.config import incluster_config
incluster_config.SERVICE_TOKEN_FILENAME, incluster_config.SERVICE_CERT_FILENAME = {token!r}, {ca!r}
"""
"""Read by every Python that finds it: where a pod has its account's files."""


def issue(api: Api, bound_to: str) -> str:
    """A token that ends with the Secret of that name."""
    api.control_plane.kubectl("-n", api.namespace, "create", "secret", "generic", bound_to)
    binding = ("--bound-object-kind=Secret", f"--bound-object-name={bound_to}")
    return api.control_plane.kubectl("-n", api.namespace, "create", "token", ACCOUNT, *binding).strip()


def credential(token: str) -> str:
    """As the audit log names it."""
    claims = token.split(".")[1]
    return f"JTI={json.loads(base64.urlsafe_b64decode(claims + '=' * (-len(claims) % 4)))['jti']}"


def test_a_token_that_is_replaced_is_read_again_before_the_old_one_ends(api: Api, start: Callable[..., Process], tmp_path: Path) -> None:
    installed(api, f"watchNamespaces={{{api.namespace}}}")
    first, second = issue(api, "first"), issue(api, "second")
    file = tmp_path / "token"
    file.write_text(first)
    (tmp_path / "sitecustomize.py").write_text(AS_IN_A_POD.format(token=str(file), ca=str(api.control_plane.ca)))
    url = urlsplit(api.control_plane.url)
    pod = {"KUBECONFIG": "", "KUBERNETES_SERVICE_HOST": str(url.hostname), "KUBERNETES_SERVICE_PORT": str(url.port)}
    operator = start(PYTHONPATH=str(tmp_path), MILLRACE_RESYNC_SECONDS="600", MILLRACE_WATCH_SILENCE_SECONDS="4", **pod)
    operator.wait_until_it_leads()
    api.create(cpu_service())
    eventually(api.is_complete, "children exist")

    def credentials() -> set[str]:
        return {each["user"]["extra"][CREDENTIAL][0] for each in requests(api)}

    assert credentials() == {credential(first)}
    file.with_suffix(".new").write_text(second)
    file.with_suffix(".new").replace(file)
    # The client looks at the file every minute.
    eventually(lambda: credential(second) in credentials(), "the new token is used", seconds=120)
    api.control_plane.kubectl("-n", api.namespace, "delete", "secret", "first")

    def is_watched_anew() -> bool:
        last = [each["user"]["extra"][CREDENTIAL][0] for each in requests(api) if each["verb"] == "watch"][-6:]
        return set(last) == {credential(second)}

    eventually(is_watched_anew, "the watches have the new token too", seconds=60)
    api.delete(api.path("services", "chat"))
    eventually(lambda: api.has("services", "chat"), "it works on")
    assert operator.process.poll() is None
    assert not operator.said("Traceback")
