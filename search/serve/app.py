"""The pages: what each address shows, and the small answers that tell whether anything changed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, get_args
from urllib.parse import urlencode, urlsplit

import bottle
import jinja2

from search.failures import bad_input
from search.formats import (
    format_count,
    format_number,
    format_number_of,
    format_seconds,
    format_time,
    format_value,
)
from search.markup import embed_json
from search.progress import by_method, pauses, trial_state
from search.serve import charts, views
from search.serve.figures import best_caption, figure
from search.serve.static_files import STATIC, static_address, static_files
from storage import queries
from storage.curves import Curves
from storage.errors import DatabaseUnreachable
from storage.experiments import Experiments
from storage.metric_values import ToldState
from storage.pages import SORTS, Pages, Sort
from storage.records import TrialState

if TYPE_CHECKING:
    from wsgiref.types import WSGIApplication

    from storage.records import ExperimentRecord, StudyProgress, StudyRecord

logger = logging.getLogger(__name__)

EXPERIMENTS_PER_PAGE, TRIALS_PER_PAGE = 50, 50
MOST_SLOTS = 500
"""Trials that run, and workers, on one page."""
MOST_EPOCHS = 1000
"""Rows of a trial's table of epochs."""
OLDEST = 10.0
"""Seconds for which the pages of workers and of all experiments may stand although nothing changed."""
BEST_STRANDS, OTHER_STRANDS = 40, 210
"""Trials in parallel coordinates: the best, and of the others about so many."""

WORDS: Mapping[str, str] = {
    "number": "number",
    "value": "best value first",
    "worst": "worst value first",
    "started": "newest first",
    "ended": "ended last first",
}
"""How the ways to sort are called."""


class View:
    """Answers requests. May be shared by threads."""

    def __init__(self, pages: Pages, dashboard: str | None, clock: Callable[[], float] = time.time) -> None:
        self.pages = pages
        self.dashboard = dashboard.rstrip("/") if dashboard else None
        self._clock = clock

    def _stamp(self, experiment_id: int | None = None) -> tuple[str, bool]:
        """A version of what a page shows, and whether a living process controls the experiment.

        Without an experiment it changes with the clock as well: those pages show what no row tells.
        """
        version = self.pages.version(experiment_id)
        if experiment_id is None:
            return f"{version}-{int(self._clock() // OLDEST)}", False
        controlled = experiment_id in Experiments(self.pages.database).controlled([experiment_id])
        return f"{version}-{int(controlled)}", controlled

    def experiments(self) -> str:
        """All experiments."""
        version, _ = self._stamp()
        number = views.number_of(_query().get("page", ""), 1)
        rows = self.pages.experiments(
            limit=EXPERIMENTS_PER_PAGE + 1, offset=(number - 1) * EXPERIMENTS_PER_PAGE
        )
        controlled = Experiments(self.pages.database).controlled(row.id for row in rows)
        return self._render(
            "experiments.html.j2",
            here="experiments",
            title="Experiments",
            version=version,
            poll="/api/version",
            experiments=[
                (row, views.shown_state(row.state, controlled=row.id in controlled))
                for row in rows[:EXPERIMENTS_PER_PAGE]
            ],
            number=number,
            more=len(rows) > EXPERIMENTS_PER_PAGE,
        )

    def experiment(self, number: str) -> str:
        """An experiment: its methods side by side, figures, trials."""
        return self._overview(int(number), None)

    def study(self, number: str) -> str:
        """A study: the same of one method and replicate."""
        study = _found(self.pages.study(int(number)))
        return self._overview(study.experiment_id, study)

    def _overview(self, experiment_id: int, study: StudyRecord | None) -> str:
        """The page of an experiment, or of one of its studies."""
        # First, so that what changes while the page is made is seen by the next look.
        version, controlled = self._stamp(experiment_id)
        record = _found(self.pages.experiment(experiment_id))
        of_study = None if study is None else study.id
        role = "search" if study is None else study.role
        all_rows = queries.progress(self.pages.database, record.id, role=role)
        rows = [row for row in all_rows if study is None or row.study.id == study.id]
        direction = queries.direction(self.pages.database, record.id) or "maximize"
        every = list(dict.fromkeys(row.study.method for row in all_rows))
        methods = by_method(rows, record.spec, maximize=direction == "maximize")
        metric = str(record.spec.get("metric", "value"))
        names = [method.method for method in methods]
        lines = views.best_so_far(
            self.pages.improvements(record.id, of_study), [row.study for row in rows], names
        )
        sample = self.pages.sample(record.id, of_study, best=BEST_STRANDS, others=OTHER_STRANDS)
        axes, strands = views.parallel_coordinates(sample, metric)
        return self._render(
            "overview.html.j2",
            title=record.name if study is None else study.name,
            version=version,
            poll=f"/api/version?experiment={record.id}",
            record=record,
            state=views.shown_state(record.state, controlled=controlled),
            study=study,
            metric=metric,
            direction=direction,
            methods=methods,
            order={name: place for place, name in enumerate(every)},
            studies=rows,
            best_so_far=figure(
                "best-so-far",
                "Best so far",
                lines,
                x_title="epochs spent per study",
                y_title=f"best {metric} so far",
                y_range=views.zoomed(lines),
                styles=[every.index(name) for name in names],
                caption=best_caption(metric, direction, banded=any(one.band for one in lines)),
            ),
            parallel=charts.parallel(axes, strands) if strands else None,
            sampled=len(sample),
            links=self._dashboard_links(record.id),
            **self._trials(record, study, rows, every),
        )

    def _trials(
        self,
        record: ExperimentRecord,
        study: StudyRecord | None,
        rows: Sequence[StudyProgress],
        methods: Sequence[str],
    ) -> dict[str, object]:
        """One page of the table of trials, as the request's filters ask."""
        query = _query()
        method = _one_of(query.get("method", ""), methods)
        pausing = pauses(record.spec) and (study is None or study.role == "search")
        states: list[ToldState] = list(get_args(TrialState))
        if pausing:
            states.append("paused")
        state: ToldState | None = _one_of(query.get("state", ""), states)
        sort: Sort = _one_of(query.get("sort", ""), tuple(SORTS)) or "number"
        page = views.page_of(query.get("page", "1"), TRIALS_PER_PAGE, views.total_trials(rows, method, state))
        trials = self.pages.trials(
            record.id,
            study_id=None if study is None else study.id,
            method=method,
            state=state,
            sort=sort,
            limit=page.size,
            offset=page.offset,
        )
        kept = {"method": method, "state": state, "sort": sort if sort != "number" else None}
        kept = {key: value for key, value in kept.items() if value is not None}
        return {
            "trials": trials,
            "page": page,
            "chosen": {"method": method, "state": state, "sort": sort},
            "all_methods": methods,
            "states": states,
            "pausing": pausing,
            "sorts": WORDS,
            "address": lambda number: "?" + urlencode({**kept, "page": number}) + "#trials",
        }

    def trial(self, number: str) -> str:
        """A trial: its curve, its config, its attempts."""
        study = _found(self.pages.study_of_trial(int(number)))
        version, _ = self._stamp(study.experiment_id)
        record = _found(self.pages.experiment(study.experiment_id))
        row = _found(self.pages.trial(int(number)))
        epochs = Curves(self.pages.database).of_trial(row.trial_id)
        metric = str(record.spec.get("metric", "value"))
        losses, measured = views.curve_series(epochs, metric)
        figures = [
            figure("losses", "Losses", losses, x_title="epoch", y_title="loss",
                    caption="Means over the images of an epoch."),
            figure("metric", metric, measured, x_title="epoch", y_title=metric,
                    caption="On the validation images, at the end of each epoch."),
        ]  # fmt: skip
        return self._render(
            "trial.html.j2",
            title=f"Trial {row.number} of {study.name}",
            version=version,
            poll=f"/api/version?experiment={record.id}",
            record=record,
            study=study,
            row=row,
            state=trial_state(row, pausing=pauses(record.spec) and study.role == "search"),
            metric=metric,
            figures=[figure for figure in figures if figure.ends],
            epochs=epochs[-MOST_EPOCHS:],
            attempts=self.pages.attempts(row.trial_id),
            links=self._dashboard_links(record.id),
        )

    def workers(self) -> str:
        """Who runs what now."""
        version, _ = self._stamp()
        return self._render(
            "workers.html.j2",
            here="workers",
            title="Workers",
            version=version,
            poll="/api/version",
            slots=self.pages.slots(limit=MOST_SLOTS),
            workers=self.pages.workers(limit=MOST_SLOTS),
        )

    def version(self) -> Any:
        """Whether anything changed: a version as JSON, or 304 for the version that the asker has."""
        asked = _query().get("experiment")
        version, _ = self._stamp(views.number_of(asked, 0) if asked is not None else None)
        tag = f'"{version}"'
        headers = {"ETag": tag, "Cache-Control": "no-cache"}
        if tag in bottle.request.get_header("If-None-Match", ""):
            return bottle.HTTPResponse(status=304, headers=headers)
        headers["Content-Type"] = "application/json"
        return bottle.HTTPResponse(json.dumps({"version": version}), headers=headers)

    def static(self, name: str) -> Any:
        """One of our own files; addresses carry its hash, so a browser may keep it."""
        body = static_files().get(name)
        if body is None:
            raise bottle.HTTPError(404)
        headers = {"Content-Type": STATIC[name], "Cache-Control": "public, max-age=31536000, immutable"}
        return bottle.HTTPResponse(body, headers=headers)

    def missing(self, error: Any) -> str:
        """The page for an error that has a status: an unknown address, an unknown number."""
        bottle.response.content_type = "text/html; charset=utf-8"
        return self._render(
            "error.html.j2",
            title="Not found" if error.status_code == 404 else str(error.status_line),
            version="",
            poll="",
        )

    def _dashboard_links(self, experiment_id: int) -> dict[int, str]:
        """Our ids of studies → their pages in Optuna Dashboard, where one is known."""
        if self.dashboard is None:
            return {}
        studies = self.pages.optuna_studies(experiment_id)
        return {ours: f"{self.dashboard}/dashboard/studies/{optunas}" for ours, optunas in studies.items()}

    def _render(self, template: str, **context: object) -> str:
        bottle.response.set_header("Cache-Control", "no-store")
        return self._templates.get_template(template).render({"here": "", **context})

    @cached_property
    def _templates(self) -> jinja2.Environment:
        environment = jinja2.Environment(
            loader=jinja2.PackageLoader("search.serve", "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters |= {
            "number": format_number,
            "value": format_value,
            "count": format_count,
            "number_of": format_number_of,
            "seconds": format_seconds,
            "time": format_time,
            "shorten": views.shorten,
            "embed": embed_json,
        }
        environment.globals |= {
            "static": static_address,
            "style": charts.style,
            "trial_state": trial_state,
            "shown_states": views.STATES,
            "pieces": lambda row, planned: views.shares(
                {state: getattr(row, state) for state in views.STATES}, planned
            ),
        }
        return environment


def application(pages: Pages, dashboard: str | None = None) -> WSGIApplication:
    """The view as a WSGI application, without its guard. `dashboard`: where an Optuna Dashboard runs.

    Raises `CommandError` for a `dashboard` that is no web address.
    """
    if dashboard is not None and urlsplit(dashboard).scheme not in {"http", "https"}:
        raise bad_input(f"{dashboard!r} is no web address", next="--dashboard http://127.0.0.1:8080")
    view = View(pages, dashboard)
    app = bottle.Bottle()
    app.config["catchall"] = False  # the guard turns what fails into an answer
    routes: Mapping[str, Callable[..., Any]] = {
        "/": view.experiments,
        r"/experiments/<number:re:\d{1,9}>": view.experiment,
        r"/studies/<number:re:\d{1,9}>": view.study,
        r"/trials/<number:re:\d{1,9}>": view.trial,
        "/workers": view.workers,
        "/api/version": view.version,
        r"/static/<name:re:[a-z.]{1,40}>": view.static,
    }
    for path, answer in routes.items():
        app.route(path, "GET", answer)
    app.default_error_handler = view.missing
    return app  # type: ignore[no-any-return]  # bottle has no types


def describe_error(error: Exception) -> tuple[str, str]:
    """Status and text for an exception: a browser learns no detail, the log all."""
    if isinstance(error, DatabaseUnreachable):
        logger.warning("%s", error)
        return "503 Service Unavailable", "The database does not answer. Try again in a moment."
    logger.error("a page failed", exc_info=error)
    return "500 Internal Server Error", "This page failed; the log of `shoal serve` says why."


def _query() -> Mapping[str, str]:
    """What stands behind the question mark, as text; of a name that is there twice, the last."""
    return dict(bottle.request.query.decode())


def _one_of(asked: str, known: Sequence[Any]) -> Any:
    """What was asked for, if it is known; else None."""
    return asked if asked in known else None


def _found(record: Any) -> Any:
    """The record; a 404 where there is none."""
    if record is None:
        raise bottle.HTTPError(404)
    return record
