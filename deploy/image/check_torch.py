"""Fail unless the torch that is installed is the build that was asked for: `cuda` or `cpu`.

Reads torch's own version file without importing torch, which takes seconds and a GPU's driver.
"""

from __future__ import annotations

import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

REMEDIES = {
    "cuda": "this index offers a CPU build; leave TORCH_INDEX out to take PyPI's, or build with "
    "--build-arg TORCH=cpu for machines without a GPU",
    "cpu": "name PyTorch's CPU index: --build-arg TORCH_INDEX=URL (https://pytorch.org/get-started/locally/)",
}


def build_of(version_file: Path) -> str:
    """`cuda`, `rocm` or `cpu`, as torch's version file says."""
    names = runpy.run_path(str(version_file))
    if names.get("cuda"):
        return "cuda"
    return "rocm" if names.get("hip") else "cpu"


if __name__ == "__main__":
    wanted = sys.argv[1] if len(sys.argv) == 2 else ""
    if wanted not in REMEDIES:
        sys.exit(f"TORCH is {wanted!r}; it must be one of {', '.join(REMEDIES)}")
    found = find_spec("torch")
    if found is None or found.origin is None:
        sys.exit("torch is not installed")
    build = build_of(Path(found.origin).with_name("version.py"))
    if build != wanted:
        sys.exit(f"torch is the {build} build, but {wanted} was asked for: {REMEDIES[wanted]}")
    print(f"torch: the {build} build")
