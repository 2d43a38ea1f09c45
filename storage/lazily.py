"""SQLAlchemy's names, each imported when it is first used.

To import SQLAlchemy takes longer than `shoal status` takes for everything else, and a look needs none of
it (`storage.plain`). Modules on the way to a look take these names from here, as `sql.text(…)`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sqlalchemy import create_engine, text
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import (
        ArgumentError,
        DBAPIError,
        IntegrityError,
        ProgrammingError,
        SQLAlchemyError,
    )

__all__ = [
    "ArgumentError",
    "DBAPIError",
    "IntegrityError",
    "ProgrammingError",
    "SQLAlchemyError",
    "create_engine",
    "make_url",
    "text",
]

MODULES = {"create_engine": "sqlalchemy", "make_url": "sqlalchemy.engine", "text": "sqlalchemy"}
"""Where a name lives; errors live in `sqlalchemy.exc`."""

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Python looks here for what the module does not hold yet."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(MODULES.get(name, "sqlalchemy.exc")), name)
        globals()[name] = found
        return found
