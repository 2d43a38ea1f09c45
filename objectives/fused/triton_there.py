"""Whether kernels in Triton's language may be used in this process."""

from __future__ import annotations

import os
from importlib.util import find_spec

VARIABLE = "SHOAL_TRITON"
"""`off`: use none of our kernels, for a driver with which one of them crashes. A crash can't be tried out: it
takes the process's GPU with it."""


def has_triton() -> bool:
    """Whether Triton is installed (torch's builds for CUDA bring it) and not switched off."""
    return os.environ.get(VARIABLE) != "off" and find_spec("triton") is not None
