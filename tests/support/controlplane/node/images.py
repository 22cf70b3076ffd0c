"""Container images from single static programs, without a registry or a container engine."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MEDIA = "application/vnd.oci.image"


@dataclass(frozen=True, kw_only=True)
class Image:
    """An image: its full name, its files by their path inside, and what is run."""

    name: str
    files: Mapping[str, Path]
    entrypoint: Sequence[str]


def write(image: Image, path: Path) -> Path:
    """Write an image as an OCI archive, as `ctr images import` takes it, and return its path."""
    layer = _layer(image.files)
    blobs = {_digest(layer): layer}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": list(image.entrypoint)},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": _add(blobs, config, "config.v1+json"),
        "layers": [_descriptor(layer, "layer.v1.tar")],
    }
    named = {"annotations": {"io.containerd.image.name": image.name}}
    index = {
        "schemaVersion": 2,
        "manifests": [_add(blobs, manifest, "manifest.v1+json") | named],
    }
    files = {
        "oci-layout": _json({"imageLayoutVersion": "1.0.0"}),
        "index.json": _json(index),
        **{f"blobs/sha256/{digest.partition(':')[2]}": data for digest, data in blobs.items()},
    }
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            _store(archive, name, data, 0o644)
    return path


def _layer(files: Mapping[str, Path]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, source in files.items():
            _store(archive, name.lstrip("/"), source.read_bytes(), 0o755)
    return content.getvalue()


def _store(archive: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), mode
    archive.addfile(entry, io.BytesIO(data))


def _add(blobs: dict[str, bytes], content: Any, kind: str) -> dict[str, Any]:
    data = _json(content)
    blobs[_digest(data)] = data
    return _descriptor(data, kind)


def _descriptor(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": f"{MEDIA}.{kind}", "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
