"""Making an experiment's studies: all of them in one transaction, the points of their grids in another.

An experiment may have a hundred studies (methods × replicates), so nothing here is asked or stored
study by study, unless the storage knows no other way. What is there stays as it is, so all of it
may be done again at any time, and is done again where the database was lost in its middle.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.trials.study import GRID_KEY, batched, study_lock
from storage.locks import locks
from storage.optuna.shoal_storage import ShoalStorage
from storage.optuna.studies import StudyTemplate

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from objectives.base import Scalar
    from search.experiment.spec import ExperimentSpec
    from storage.database import Database

METRIC_NAMES = "study:metric_names"
"""System attribute in which Optuna keeps what dashboards call a study's values."""


def make_studies(database: Database, storage: BaseStorage, spec: ExperimentSpec) -> None:
    """Make the studies that aren't there, and put in the queue what a grid lacks.

    May be called again at any time, and in a thread of its own. Raises `StorageError`.
    """
    templates = [template_of(spec, method, replicate) for method, replicate, _ in spec.studies()]
    if isinstance(storage, ShoalStorage):
        storage.make_studies(templates)
    else:
        for template in templates:
            _make_study(storage, template)
    grids = {name: replicate for method, replicate, name in spec.studies() if method == "grid"}
    if grids:
        # A try whose answer was lost may have been done: the next one finds what is there.
        database.retrying(lambda _unsure: _enqueue_grids(database, storage, spec, grids))
    storage.remove_session()


def template_of(spec: ExperimentSpec, method: str, replicate: int) -> StudyTemplate:
    """A study as it is to be, with what tells a reader of Optuna's tables what it is."""
    direction = StudyDirection.MAXIMIZE if spec.direction() == "maximize" else StudyDirection.MINIMIZE
    return StudyTemplate(
        name=spec.study_name(method, replicate),
        direction=direction,
        user_attrs={
            "shoal:experiment": spec.experiment,
            "shoal:method": method,
            "shoal:replicate": replicate,
            "shoal:metric": spec.metric,
            "shoal:settings": spec.methods[method].model_dump(mode="json"),
            "shoal:pruner": spec.pruner.model_dump(mode="json"),
            "shoal:versions": {name: version(name) for name in ("optuna", "torch", "shoal")},
        },
        system_attrs={METRIC_NAMES: [spec.metric]},
    )


def _make_study(storage: BaseStorage, template: StudyTemplate) -> None:
    """The same by Optuna's own interface, which knows only one thing at a time."""
    study = optuna.create_study(
        study_name=template.name, storage=storage, direction=template.direction, load_if_exists=True
    )
    there = study.user_attrs
    for key, value in template.user_attrs.items():
        if key not in there:
            study.set_user_attr(key, value)
    if study.metric_names is None:
        # No `catch_warnings`, which would set back the filters of other threads as well.
        warnings.filterwarnings("ignore", ".*set_metric_names is experimental", ExperimentalWarning)
        study.set_metric_names(template.system_attrs[METRIC_NAMES])


def grid_key(point: Mapping[str, Scalar]) -> str:
    """What makes a point of the grid itself: its values in canonical JSON."""
    return json.dumps(dict(point), sort_keys=True, separators=(",", ":"))


def missing_points(
    points: Sequence[Mapping[str, Scalar]], trials: Sequence[FrozenTrial]
) -> list[FrozenTrial]:
    """Trials, each to be put in the queue, of the points of a grid that a study has none of.

    Each names its point, so nothing is evaluated twice, not even one that was evaluated for an
    earlier version of the experiment.
    """
    there = {trial.user_attrs.get(GRID_KEY) for trial in trials}
    return [
        create_trial(
            state=TrialState.WAITING,
            system_attrs={"fixed_params": dict(point)},
            user_attrs={GRID_KEY: key},
        )
        for point in points
        if (key := grid_key(point)) not in there
    ]


def _enqueue_grids(
    database: Database, storage: BaseStorage, spec: ExperimentSpec, grids: Mapping[str, int]
) -> None:
    """Put the points that are missing in the queues of grids (study → replicate), all under their locks."""
    with locks(database, [study_lock(name) for name in grids]):
        missing: dict[int, list[FrozenTrial]] = {}
        with batched(storage, list(grids)):
            for name, replicate in grids.items():
                study_id = storage.get_study_id_from_name(name)
                trials = storage.get_all_trials(study_id, deepcopy=False)
                missing[study_id] = missing_points(spec.grid_points(replicate), trials)
        if isinstance(storage, ShoalStorage):
            storage.enqueue_trials(missing)
            return
        for study_id, templates in missing.items():
            for template in templates:
                storage.create_new_trial(study_id, template)
