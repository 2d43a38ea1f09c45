"""Reads what lies in `deploy/`: compose's services, rendered Kubernetes objects, their pods."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
OVERLAYS = sorted(path.name for path in (DEPLOY / "kustomize" / "overlays").iterdir() if path.is_dir())

Document = dict[str, Any]

POD_PLACES = {
    "Deployment": ("spec.template",),
    "StatefulSet": ("spec.template",),
    "Job": ("spec.template",),
    "CronJob": ("spec.jobTemplate.spec.template",),
    "RayCluster": ("spec.headGroupSpec.template", "spec.workerGroupSpecs.template"),
    "RayJob": (
        "spec.rayClusterSpec.headGroupSpec.template",
        "spec.rayClusterSpec.workerGroupSpecs.template",
    ),
    "RayCronJob": (
        "spec.jobTemplate.rayClusterSpec.headGroupSpec.template",
        "spec.jobTemplate.rayClusterSpec.workerGroupSpecs.template",
    ),
}
"""Kind → where its pods are described."""

NO_PODS = {
    "ConfigMap",
    "Namespace",
    "NetworkPolicy",
    "PersistentVolumeClaim",
    "PodDisruptionBudget",
    "Secret",
    "Service",
    "ServiceAccount",
}


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as an object describes it."""

    of: str
    """Kind and name of the object, for messages."""
    kind: str
    labels: dict[str, str]
    spec: Document

    @property
    def runs_once(self) -> bool:
        """Whether it comes to an end by itself: nobody has to ask whether it is alive."""
        return self.spec.get("restartPolicy", "Always") != "Always"

    def containers(self, *, init: bool = True) -> Iterator[Document]:
        """Its containers, those that prepare it first."""
        yield from self.spec.get("initContainers", []) if init else []
        yield from self.spec["containers"]


def call(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program to its end, whatever its exit code; what it says is kept as text."""
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False, **options)


def render(overlay: Path) -> list[Document]:
    """What `kubectl apply --kustomize` would send. Raises `CalledProcessError` if it can't be rendered."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(overlay)], capture_output=True, text=True, check=True, timeout=60
    )
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(documents: list[Document]) -> list[Pod]:
    """Every pod that the objects make. Raises `AssertionError` for a kind that nobody has thought of here."""
    found = []
    for document in documents:
        kind, name = document["kind"], document["metadata"]["name"]
        assert kind in POD_PLACES or kind in NO_PODS, f"{kind} {name}: does it make pods?"
        for place in POD_PLACES.get(kind, ()):
            for template in at(document, place.split(".")):
                labels = template.get("metadata", {}).get("labels", {})
                found.append(Pod(f"{kind} {name} ({place})", kind, labels, template["spec"]))
    return found


def at(value: Any, path: list[str]) -> Iterator[Document]:
    """The values at a path; lists on the way are walked through."""
    if isinstance(value, list):
        for entry in value:
            yield from at(entry, path)
    elif not path:
        yield value
    elif path[0] in value:
        yield from at(value[path[0]], path[1:])


def compose() -> Document:
    """compose.yaml, as YAML reads it: anchors followed, variables not."""
    loaded: Document = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    return loaded


def with_defaults(text: str) -> str:
    """A string of compose's with each variable replaced by its default; `KeyError` if it has none."""

    def default(match: re.Match[str]) -> str:
        name, separator, value = match[1].partition(":-")
        if not separator:
            raise KeyError(name)
        return value

    return re.sub(r"\$\{([^}]*)\}", default, text)


def services() -> dict[str, Document]:
    """compose's services by name."""
    found: dict[str, Document] = compose()["services"]
    return found


def is_ours(image: str) -> bool:
    """Whether an image is the one that the Dockerfile makes."""
    return re.search(r"(^|/)shoal([:@]|$)", image) is not None
