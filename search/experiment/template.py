"""The commented experiment file that `shoal init` writes."""

from __future__ import annotations

from importlib.resources import files


def template() -> str:
    """YAML that is valid as it stands and says what every key means."""
    return files("search").joinpath("examples", "template.yaml").read_text(encoding="utf-8")
