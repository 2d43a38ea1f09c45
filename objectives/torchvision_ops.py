"""The one door to torchvision; makes it importable beside a torch that it was not built for.

torchvision registers shape functions for its operators while it is imported. Its compiled
operators do not load beside a torch of another build (the usual case: a plain install takes a CPU
torch and torchvision's CUDA wheel), and the import then ends in `operator torchvision::nms does
not exist`. Reading datasets needs no such operator, so their schemas are declared here, and only
if the compiled ones are really missing.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
"""The operators whose schema torchvision's import needs, whether or not they can be run."""

_declared: list[torch.library.Library] = []  # a schema lives only as long as its Library object


def torchvision_datasets() -> ModuleType:
    """`torchvision.datasets`. Raises ImportError if torchvision is not installed."""
    declare_missing_ops()
    return importlib.import_module("torchvision.datasets")


def declare_missing_ops() -> tuple[str, ...]:
    """Declare the schemas that torchvision's own library does not bring; returns their names."""
    _load_compiled_ops()
    missing = tuple(name for name in SCHEMAS if not hasattr(torch.ops.torchvision, name))
    if missing:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in missing:
            library.define(SCHEMAS[name])
        _declared.append(library)
    return missing


def _load_compiled_ops() -> None:
    """Load torchvision's operators as its own import will do again, so that we see whether it can."""
    found = importlib.util.find_spec("torchvision")  # finds the folder without importing the package
    folders = found.submodule_search_locations if found else None
    for folder in folders or ():
        for library in sorted(Path(folder).glob("_C*.so")) + sorted(Path(folder).glob("_C*.pyd")):
            try:
                torch.ops.load_library(library)
            except (OSError, ImportError):  # built for another torch: exactly the case to repair
                continue
