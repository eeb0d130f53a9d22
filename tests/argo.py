"""What Argo CD would say of a resource, by the health check that is shipped, run in the Lua that Argo CD's own interpreter speaks (5.1)."""

from lupa.lua51 import LuaRuntime

from millrace_operator.manifest import Manifest
from services import CHECKOUT

HEALTH = (CHECKOUT / "gitops/argocd/health.lua").read_text()


def health(manifest: Manifest) -> tuple[str, str]:
    """(status, message)."""
    lua = LuaRuntime(unpack_returned_tuples=True, register_eval=False)
    lua.globals().obj = lua.table_from(manifest, recursive=True)
    answer = lua.execute(HEALTH)
    return answer["status"], answer["message"]
