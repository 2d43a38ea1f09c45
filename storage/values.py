"""Python values made fit for Postgres; what can't be stored is refused with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import Any

from storage.errors import ValueRefused


def json_text(value: Any) -> str:
    """JSON for a `json` column. Raises `ValueRefused` for NaN, infinity and what JSON can't say."""
    try:
        return _JSON.encode(value)
    except (TypeError, ValueError) as error:
        message = f"the database can't hold {value!r:.200}: {error}"
    raise ValueRefused(message)


def storable(text: str | None) -> str | None:
    """Text with what Postgres can't hold (NUL, lone surrogates) replaced: a traceback may hold anything."""
    if text is None:
        return None
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")


def finite(value: float, what: str) -> float:
    """A plain finite float. Raises `ValueRefused`."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueRefused(f"{what} is {number}, which is never stored")
    return number


def numbers(values: Iterable[float]) -> str:
    """A Postgres array literal of numbers; the driver's own takes many times as long to make."""
    return "{" + ",".join(map(repr, values)) + "}"


_JSON = json.JSONEncoder(allow_nan=False)
