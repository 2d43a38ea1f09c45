"""What experiments that are put together have in common, and what not.

Ranks and normalised regrets have no unit, so experiments may differ in data, metric, direction,
budget and settings, and the comparison says in which. What they can't do without is methods in
common, each with a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from search.compare import cells
from search.compare.base import Comparison
from search.compare.cells import left
from search.compare.protocol import in_line
from search.compare.tables import Table
from search.formats import NOTHING, format_value

OWN = frozenset({"experiment", "seed", "allow_imports"})
"""Keys of the file in which experiments differ without being different."""

MOST_ROWS = 60
"""Rows of the table of what differs; spaces of different networks may differ in hundreds of places."""


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why an experiment can't be put together with the others."""

    experiment: str
    text: str
    choosable: bool = False
    """Whether comparing fewer methods would help."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One setting that isn't the same everywhere."""

    place: str
    """Dotted path in the experiment file."""
    texts: tuple[str, ...]
    """In the order of the experiments."""


def obstacles(
    found: Sequence[Comparison], valued: Sequence[frozenset[str]], methods: Sequence[str] | None = None
) -> tuple[Obstacle, ...]:
    """What stands in the way; `valued`: the methods of each experiment that have a value.

    Without `methods`, every method of any experiment is wanted in all of them.
    """
    wanted = tuple(methods or dict.fromkeys(method for one in found for method in one.methods))
    said = []
    for one, with_value in zip(found, valued, strict=True):
        if not with_value:
            said.append(Obstacle(one.experiment, "no trial was trained to its end: nothing to compare"))
            continue
        absent = [method for method in wanted if method not in one.methods]
        empty = [method for method in wanted if method in one.methods and method not in with_value]
        if absent:
            said.append(Obstacle(one.experiment, f"didn't run {', '.join(absent)}", choosable=True))
        if empty:
            text = f"has no trial of {', '.join(empty)} that was trained to its end"
            said.append(Obstacle(one.experiment, text, choosable=True))
    return tuple(said)


def differences(found: Sequence[Comparison]) -> tuple[Difference, ...]:
    """Every setting in which the experiments differ, in the order of their files."""
    flat = [_flat({k: v for k, v in one.spec.items() if str(k) not in OWN}) for one in found]
    places = dict.fromkeys(place for one in flat for place in one)
    rows = [Difference("direction", tuple(one.direction for one in found))]
    rows += [Difference(place, tuple(one.get(place, NOTHING) for one in flat)) for place in places]
    return tuple(row for row in rows if len(set(row.texts)) > 1)


def difference_table(found: Sequence[Comparison]) -> Table:
    """The same as a table; what is beyond `MOST_ROWS` is counted in the caption."""
    rows = differences(found)
    more = len(rows) - MOST_ROWS
    left_out = f" {more} more settings differ; the experiments' own reports name them." if more > 0 else ""
    return Table(
        key="differences",
        title="In what the experiments differ",
        caption=f"Settings that are not the same in all of them, by their place in the file.{left_out}",
        columns=(
            left("setting", "setting"),
            *(left(f"of.{one.experiment}", one.experiment) for one in found),
        ),
        rows=tuple(
            (cells.text(row.place), *(cells.text(text) for text in row.texts)) for row in rows[:MOST_ROWS]
        ),
    )


def remarks(found: Sequence[Comparison], methods: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know before believing ranks over these experiments, a sentence each."""
    said = []
    going_on = [one.experiment for one in found if one.state != "finished"]
    if going_on:
        said.append(f"Provisional: {', '.join(going_on)} {_has(going_on)} not ended.")
    metrics = {one.experiment: f"{one.metric}, {one.direction}" for one in found}
    if len(set(metrics.values())) > 1:
        named = "; ".join(f"{name}: {metric}" for name, metric in metrics.items())
        said.append(
            f"Metrics differ ({named}). Ranks go by what is better in each experiment; means of different "
            "experiments are not on one scale."
        )
    budgets = {one.experiment: in_line(_mapping(one.spec.get("budget"))) for one in found}
    if len(set(budgets.values())) > 1:
        named = "; ".join(f"{name}: {budget or NOTHING}" for name, budget in budgets.items())
        said.append(f"Budgets differ ({named}). Each experiment's values are those at its own budget.")
    for method in methods:
        settings = {in_line(_mapping(_mapping(one.spec.get("methods")).get(method))) for one in found}
        if len(settings) > 1:
            said.append(f"{method} did not have the same settings in all experiments.")
    if len({in_line(_mapping(one.spec.get("space"))) for one in found}) > 1:
        said.append("Search spaces differ.")
    left_out = [m for m in dict.fromkeys(m for one in found for m in one.methods) if m not in methods]
    if left_out:
        said.append(f"Left out: {', '.join(left_out)}; regrets are still to the best value of any method.")
    return tuple(said)


def _has(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _flat(spec: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Dotted paths to the values' texts; what isn't set is left out."""
    found: dict[str, str] = {}
    for key, value in spec.items():
        place = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= _flat(value, f"{place}.")
        elif isinstance(value, list | tuple):
            found[place] = ", ".join(format_value(entry) for entry in value) or NOTHING
        elif value is not None:
            found[place] = format_value(value)
    return found
