"""Print what shoal depends on, a line each, so that the image installs it before our own code changes.

Arguments: names of extras, separated by commas. Run by the Dockerfile, with nothing installed yet.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def requirements(project: dict, extras: list[str]) -> list[str]:
    """The dependencies of `[project]` and of its extras. Raises `SystemExit` for one that isn't there."""
    optional = project.get("optional-dependencies", {})
    if unknown := sorted(set(extras) - set(optional)):
        sys.exit(f"no extra is called {', '.join(unknown)}; there are {', '.join(sorted(optional))}")
    return [*project["dependencies"], *(line for extra in extras for line in optional[extra])]


if __name__ == "__main__":
    document = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))
    wanted = [name.strip() for name in " ".join(sys.argv[1:]).split(",") if name.strip()]
    print("\n".join(requirements(document["project"], wanted)))
