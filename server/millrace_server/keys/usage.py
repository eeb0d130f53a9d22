"""What each key's owner has used, as Prometheus series with a bounded number of labels. Owners' names come from the key file only."""

from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter

from millrace_server.keys.entries import OTHER

MOST_OWNERS = 100
"""With series of their own; of later ones, as swapped key files bring them, `other` is the sum."""


@dataclass(frozen=True)
class _Owner:
    requests: Counter
    prompt_tokens: Counter
    generated_tokens: Counter


class Usage:
    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, meaning: str) -> Counter:
            return Counter(f"llm_key_{name}", meaning, ["key"], registry=registry)

        self._requests = counter("requests", "Requests that came with this owner's key, whatever became of them.")
        self._prompt_tokens = counter("prompt_tokens", "Tokens of this owner's prompts that ran.")
        self._generated_tokens = counter("generated_tokens", "Tokens that the model generated for this owner.")
        self._refused = Counter("llm_auth_failures", "Requests without a valid key where one is needed.", registry=registry)
        self._owners: dict[str, _Owner] = {}

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

    def _of(self, tenant: str) -> _Owner:
        """`tenant` is empty without keys: then there is nobody to tell apart."""
        known = tenant if tenant in self._owners or len(self._owners) < MOST_OWNERS else OTHER
        if known not in self._owners:
            series = (counter.labels(known) for counter in (self._requests, self._prompt_tokens, self._generated_tokens))
            self._owners[known] = _Owner(*series)
        return self._owners[known]
