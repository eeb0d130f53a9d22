"""What each tenant, which is a key's owner, has used: Prometheus series with a bounded number of labels. Names come from the key file only.

They belong into a registry that only the internal port shows: a client need not know who the others are.
"""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from millrace_server.keys.entries import OTHER

MOST_TENANTS = 100
"""With series of their own; `other` is the sum of those who come later."""


@dataclass(frozen=True)
class _Series:
    requests: Counter
    prompt_tokens: Counter
    generated_tokens: Counter


class Usage:
    """A tenant without a name is nobody in particular: there are no keys, and nothing is counted."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str) -> Counter:
            return Counter(f"llm_tenant_{name}", meaning, ["tenant"], registry=registry)

        self._requests = counter("requests", "Requests that came with this tenant's key, whatever became of them.")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of this tenant's prompts that ran.")
        self._generated_tokens = counter("generated_tokens", "Tokens that the model generated for this tenant.")
        self._refused = Counter("llm_auth_failures", "Requests without a valid key where one is needed.", registry=registry)
        self._tenants: dict[str, _Series] = {}

    def refused(self) -> None:
        self._refused.inc()

    def asked(self, tenant: str) -> None:
        self._of(tenant).requests.inc()

    def prompt_ran(self, tenant: str, tokens: int) -> None:
        if tenant:
            self._of(tenant).prompt_tokens.inc(tokens)

    def generated(self, tenant: str, tokens: int) -> None:
        if tenant:
            self._of(tenant).generated_tokens.inc(tokens)

    def _of(self, tenant: str) -> _Series:
        known = tenant if tenant in self._tenants or len(self._tenants) < MOST_TENANTS else OTHER
        if known not in self._tenants:
            series = (counter.labels(known) for counter in (self._requests, self._prompt_tokens, self._generated_tokens))
            self._tenants[known] = _Series(*series)
        return self._tenants[known]
