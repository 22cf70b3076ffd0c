"""Volumes of a cluster without a storage driver: a StorageClass and volumes made ahead of time."""

from __future__ import annotations

from typing import Any

from tests.support.controlplane.api import Api

PATH = "/api/v1/persistentvolumes"
CLASS = "standard"
VOLUMES = 30


def standard_volumes() -> list[dict[str, Any]]:
    """Return the class `standard` and volumes that claims of tests bind to."""
    kind = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS},
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "Immediate",
    }
    return [kind, *(_volume(number) for number in range(VOLUMES))]


def free_released(api: Api) -> None:
    """Let volumes whose claims are gone be bound again, as a storage driver's would be."""
    for volume in api.get(PATH)["items"]:
        if volume.get("status", {}).get("phase") == "Released":
            api.patch(f"{PATH}/{volume['metadata']['name']}", {"spec": {"claimRef": None}})


def _volume(number: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": f"simulated-{number}"},
        "spec": {
            "storageClassName": CLASS,
            "capacity": {"storage": "100Gi"},
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": f"/simulated/{number}"},
        },
    }
