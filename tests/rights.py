"""What the chart grants to the operator's account, and what the operator has asked for, as the API server's audit log tells it."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.packages import tool
from millrace_operator import generate
from millrace_operator.manifest import Manifest
from operators import Api
from services import CHECKOUT

ACCOUNT = "millrace-operator"
RIGHTS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}


@dataclass(frozen=True, order=True)
class Right:
    """An empty namespace or name of a grant means all of them."""

    group: str
    resource: str
    """With its subresource: `deployments/scale`."""
    verb: str
    namespace: str
    name: str

    def covers(self, used: "Right") -> bool:
        same = (self.group, self.resource, self.verb) == (used.group, used.resource, used.verb)
        return same and self.namespace in ("", used.namespace) and self.name in ("", used.name)


def installed(api: Api, *values: str) -> list[Manifest]:
    """Gives the operator the account and the rights of a release of the chart in the test's namespace, and nothing else."""
    text = generate.render(
        CHECKOUT / "charts/millrace", helm=str(tool("helm")), namespace=api.namespace, values=(*values, "crds.install=false")
    )
    rights = [each for each in yaml.safe_load_all(text) if each and each["kind"] in RIGHTS]
    api.control_plane.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(rights))
    return rights


def account(api: Api) -> str:
    return f"system:serviceaccount:{api.namespace}:{ACCOUNT}"


def kubeconfig(api: Api) -> str:
    """Of the operator's account."""
    groups = ("system:serviceaccounts", f"system:serviceaccounts:{api.namespace}", "system:authenticated")
    return str(api.control_plane.kubeconfig_for(account(api), *groups))


def granted(manifests: Iterable[Manifest]) -> set[Right]:
    return {
        Right(group, resource, verb, role["metadata"].get("namespace", ""), name)
        for role in manifests
        if role["kind"] in ("ClusterRole", "Role")
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
        for name in rule.get("resourceNames", [""])
    }


def requests(api: Api) -> list[Manifest]:
    """Of the operator's account, as the audit log has them."""
    lines = _lines(api.control_plane.audit_log)
    return [each for each in map(json.loads, lines) if each["user"]["username"] == account(api)]


def used(asked: Iterable[Manifest]) -> set[Right]:
    """Of requests to resources; those that only look what the API server knows are open to everybody."""
    return {right for each in asked if "objectRef" in each for right in _rights(each)}


def _rights(request: Manifest) -> Iterator[Right]:
    thing = request["objectRef"]
    resource = "/".join(filter(None, (thing["resource"], thing.get("subresource"))))
    right = Right(thing.get("apiGroup", ""), resource, request["verb"], thing.get("namespace", ""), thing.get("name", ""))
    yield right
    if request["verb"] == "patch" and request.get("responseStatus", {}).get("code") == 201:
        # An apply that made the object; the API server has asked for this right too.
        yield Right(right.group, right.resource, "create", right.namespace, right.name)


def _lines(log: Path) -> list[str]:
    """Whole ones: the last may still be on its way."""
    return log.read_text().splitlines(keepends=True)[: None if log.read_text().endswith("\n") else -1]
