"""Where a model's files come from: the grammar of `spec.model.source`, written once for the CRD's pattern and the parser.

Every character that a shell, Kubernetes' own `$(VAR)` expansion or a parent folder (`..`) could give a meaning is outside the grammar.
"""

import re
from dataclasses import dataclass

DNS_SUBDOMAIN = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"
"""The name of most Kubernetes objects, without anchors."""

_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?"
_REVISION = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,99}){0,3}"
_CLAIM = DNS_SUBDOMAIN.replace("(", "(?:")
_PATH = r"(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)+"
_IMAGE = r"[A-Za-z0-9][A-Za-z0-9.:_/-]*(?:@sha256:[a-f0-9]{64})?"

_HUB_SOURCE = rf"hf://({_REPOSITORY})(?:@({_REVISION}))?"
_CLAIM_SOURCE = rf"pvc://({_CLAIM})({_PATH})?"
_IMAGE_SOURCE = rf"oci://({_IMAGE})#({_PATH})"

REPOSITORY_PATTERN = rf"^{_REPOSITORY}$"
IMAGE_PATTERN = rf"^{_IMAGE}$"
SOURCE_PATTERN = rf"^(?:{_HUB_SOURCE}|{_CLAIM_SOURCE}|{_IMAGE_SOURCE})$"
HUB_PREFIX = "hf://"
MAX_SOURCE_LENGTH = 512


class InvalidSource(ValueError):
    """One sentence that shows the three forms a source may have."""


@dataclass(frozen=True)
class HubSource:
    """A repository of the Hugging Face hub, downloaded by an init container."""

    repository: str
    revision: str | None
    """Branch, tag or commit; None means the repository's default branch."""


@dataclass(frozen=True)
class ClaimSource:
    """A PersistentVolumeClaim of the same namespace, mounted read-only."""

    claim: str
    path: str
    """Absolute inside the volume; empty means its root."""


@dataclass(frozen=True)
class ImageSource:
    """An image that holds the model's files and a `cp` command, copied by an init container."""

    image: str
    path: str
    """Absolute inside the image."""

    @property
    def digest(self) -> str | None:
        _, found, digest = self.image.partition("@")
        return digest if found else None


ModelSource = HubSource | ClaimSource | ImageSource


def parse_source(text: str) -> ModelSource:
    """Raises InvalidSource."""
    if hub := re.fullmatch(_HUB_SOURCE, text):
        return HubSource(repository=hub[1], revision=hub[2])
    if claim := re.fullmatch(_CLAIM_SOURCE, text):
        return ClaimSource(claim=claim[1], path=claim[2] or "")
    if image := re.fullmatch(_IMAGE_SOURCE, text):
        return ImageSource(image=image[1], path=image[2])
    raise InvalidSource(f"{text!r} is not hf://REPOSITORY[@REVISION], pvc://CLAIM[/PATH] or oci://IMAGE[:TAG|@DIGEST]#/PATH")
