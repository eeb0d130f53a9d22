"""Container images made of a few files, without a builder: static programs need nothing else. Same files, same image."""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
NOBODY = "65534:65534"


@dataclass(frozen=True)
class ScratchImage:
    """`files`: path in the image → a file of this machine, or a text that is the target of a symbolic link."""

    name: str
    files: dict[str, Path | str]
    entrypoint: tuple[str, ...]
    user: str = NOBODY
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def tag(self) -> str:
        """Changes with the content."""
        return _digest(self._config).removeprefix("sha256:")[:12]

    def reference(self, registry: str) -> str:
        """What pods use when the registry is called `registry`."""
        return f"{registry}/{self.name}:{self.tag}"

    def push(self, registry: str) -> None:
        """Uploads what the registry at this address (plain HTTP) lacks."""
        with httpx.Client(base_url=f"http://{registry}/v2/{self.name}", timeout=60) as client:
            if is_pushed(registry, self.name, self.tag):
                return
            for blob in (self._layer, self._config):
                upload = client.post("/blobs/uploads/").raise_for_status().headers["Location"]
                separator = "&" if "?" in upload else "?"
                client.put(f"{upload}{separator}digest={_digest(blob)}", content=blob).raise_for_status()
            client.put(f"/manifests/{self.tag}", content=self._manifest, headers={"Content-Type": _MANIFEST_TYPE}).raise_for_status()

    @cached_property
    def _layer(self) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for path, source in sorted(self.files.items()):
                entry = tarfile.TarInfo(path.lstrip("/"))
                entry.mode = 0o755
                if isinstance(source, str):
                    entry.type, entry.linkname = tarfile.SYMTYPE, source
                    archive.addfile(entry)
                else:
                    content = source.read_bytes()
                    entry.size = len(content)
                    archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    @cached_property
    def _config(self) -> bytes:
        return _json(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {
                    "User": self.user,
                    "Entrypoint": list(self.entrypoint),
                    "Env": [f"{name}={value}" for name, value in sorted(self.environment.items())],
                },
                "rootfs": {"type": "layers", "diff_ids": [_digest(self._layer)]},
            }
        )

    @property
    def _manifest(self) -> bytes:
        return _json(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST_TYPE,
                "config": _descriptor(self._config, _CONFIG_TYPE),
                "layers": [_descriptor(self._layer, _LAYER_TYPE)],
            }
        )


def is_pushed(registry: str, name: str, tag: str) -> bool:
    """The registry at this address (plain HTTP) has this image."""
    accept = f"{_MANIFEST_TYPE}, application/vnd.docker.distribution.manifest.v2+json"
    answer = httpx.head(f"http://{registry}/v2/{name}/manifests/{tag}", headers={"Accept": accept}, timeout=10)
    return answer.status_code == httpx.codes.OK


def _descriptor(blob: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "size": len(blob), "digest": _digest(blob)}


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
