"""What Optuna Dashboard shows of an experiment beside its trials: a note per study, and key figures.

The figures compare all methods, so they hang on each method's first study alone: the dashboard sends
all of a study's drawings whenever it asks for the study. A note is Markdown; every string in it is
escaped. It stands between two lines that Markdown doesn't show, and what people write around them
is kept. Writing the same again changes nothing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from search.compare.figures.standalone import standalone
from search.compare.outcomes import count
from search.compare.render import escape_markdown
from search.formats import format_count, format_number, format_seconds, format_time, format_value

if TYPE_CHECKING:
    from optuna import Study

    from search.compare.analysis import Analysis
    from search.compare.base import Comparison
    from search.compare.contents import Contents
    from search.compare.figures.base import Figure, Json
    from search.compare.headline import StudyResult

BEGIN, END = "[//]: # (shoal writes from here)", "[//]: # (to here)"
"""Definitions of links that nothing refers to: Markdown shows nothing of them."""

_OURS = re.compile(rf"{re.escape(BEGIN)}(?:(?!{re.escape(BEGIN)}).)*?{re.escape(END)}", re.DOTALL)

MOST_TEXT = 300
"""Characters of a user's string, or of a config, in a note."""

MOST_VERDICT = 2000

MOST_PLOT = 120_000
"""Characters of a drawing's JSON; the dashboard sends it again every few seconds."""


@dataclass(frozen=True, slots=True)
class Published:
    """What was written."""

    notes: int
    """Studies whose note was new."""
    plots: int
    """Drawings that were new."""


def publish(
    database_url: str, comparison: Comparison, analysis: Analysis, contents: Contents, report: Path
) -> Published:
    """Write notes and drawings to the studies that Optuna holds; `report` is the page to name in notes.

    Raises what the database raises. Studies that were deleted are passed over.
    """
    from storage.optuna_storage import opened_optuna_storage

    plots = drawings(analysis, contents)
    first = {study.method: study.study.name for study in reversed(analysis.studies)}
    notes = drawn = 0
    with opened_optuna_storage(database_url) as storage:
        import optuna

        for result in analysis.studies:
            name, on = result.study.name, first[result.method]
            try:
                # A sampler that is never asked: the default one says how it changed.
                study = optuna.load_study(
                    study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler()
                )
            except KeyError:
                continue
            notes += _save_note(study, note(comparison, analysis, result, report, on))
            if on == name:
                kept = storage.get_study_system_attrs(storage.get_study_id_from_name(name))
                drawn += sum(_save_plot(study, key, plot, kept) for key, plot in plots.items())
    return Published(notes, drawn)


def drawings(analysis: Analysis, contents: Contents) -> dict[str, Json]:
    """The key figures by the name under which the dashboard keeps them; too large ones are left out."""
    wanted = (f"best-so-far-{analysis.protocol.declared_axis}", "scores", "importances")
    figures: dict[str, Figure] = {figure.key: figure for figure in contents.figures}
    found = {
        f"shoal-{key}-{place}": plot
        for key in wanted
        if key in figures
        for place, plot in enumerate(standalone(figures[key]))
    }
    return {name: plot for name, plot in found.items() if len(json.dumps(plot)) <= MOST_PLOT}


def note(comparison: Comparison, analysis: Analysis, result: StudyResult, report: Path, drawn_on: str) -> str:
    """A study's note without its frame: its standing, the experiment's verdict, where the report is."""
    study = result.study
    tally = count(study.trials)
    ended = [trial for trial in study.trials if trial.finished]
    states = {"complete": tally.complete, "pruned": tally.pruned, "diverged": tally.diverged,
              "failed": tally.failed, "open": tally.running + tally.waiting}  # fmt: skip
    said = ", ".join(f"{format_count(n)} {state}" for state, n in states.items() if n) or "none yet"
    epochs = format_count(sum(trial.epochs for trial in ended))
    seconds = format_seconds(sum(trial.seconds for trial in ended))
    parts = [
        f"### {_safe(comparison.experiment)}: {_safe(study.method)}, replicate {study.replicate}",
        _best(comparison, result),
        f"{format_count(tally.total)} trials ({said}); {epochs} epochs in {seconds} of training.",
        f"**Verdict of the experiment**: {_safe(analysis.conclusion.verdict, MOST_VERDICT)}",
    ]
    if comparison.state != "finished":
        parts.append(f"As of {format_time(comparison.collected_at)}: the experiment has not ended.")
    where = "Plots of all methods are drawn here" if drawn_on == study.name else (
        f"Plots of all methods are drawn on the study {_safe(drawn_on)}"
    )  # fmt: skip
    parts.append(f"{where}; the whole report: {_safe(report.resolve())}")
    return "\n\n".join(parts)


def _best(comparison: Comparison, result: StudyResult) -> str:
    judged, best = _safe(comparison.judged), result.incumbent
    if best is None or best.value is None:
        return "No trial has been trained to its end without diverging."
    config = ", ".join(f"{name}: {format_value(value)}" for name, value in best.params.items())
    said = f"**Best {judged}: {_safe(format_number(best.value))}**, trial {best.number} ({_safe(config)})."
    if result.retrained is not None:
        seeds = len(result.retrained.seeds)
        said += (
            f" Trained again with {seeds} fresh seed{'' if seeds == 1 else 's'}: test "
            f"{_safe(comparison.metric)} {_safe(format_number(result.retrained.test_mean))} on average."
        )
    return said


def _safe(value: object, most: int = MOST_TEXT) -> str:
    """Text that Markdown shows as it stands, on one line, of a bounded length."""
    text = str(value)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    # `://` and `www.` would be made links, and `$` mathematics.
    escaped = str(escape_markdown(text))
    return escaped.replace("$", "&#36;").replace("://", "&#58;//").replace("www.", "www&#46;")


def framed(before: str, ours: str) -> str:
    """The note with our part in its place: where it stood, else under what was there."""
    part = f"{BEGIN}\n\n{ours}\n\n{END}"
    if _OURS.search(before):
        return _OURS.sub(lambda _: part, before, count=1)
    return f"{before.rstrip()}\n\n{part}" if before.strip() else part


def _save_note(study: Study, ours: str) -> bool:
    from optuna_dashboard import get_note, save_note

    before = str(get_note(study))
    after = framed(before, ours)
    if after == before:
        return False
    save_note(study, after)
    return True


def _save_plot(study: Study, name: str, plot: Mapping[str, object], kept: Mapping[str, object]) -> bool:
    from optuna_dashboard import save_plotly_graph_object
    from plotly.graph_objects import Figure as Drawing

    drawing = Drawing(data=plot["data"], layout=plot["layout"])
    if _kept(kept, name) == drawing.to_json():
        return False
    save_plotly_graph_object(study, drawing, graph_object_id=name)
    return True


def _kept(attributes: Mapping[str, object], name: str) -> str:
    """The drawing as the dashboard keeps it, in pieces that are numbered from 0."""
    prefix = f"dashboard:plot_data:{name}:"
    pieces = sum(key.startswith(prefix) for key in attributes)
    return "".join(str(attributes.get(f"{prefix}{place}", "")) for place in range(pieces))
