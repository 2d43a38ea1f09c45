"""Submitting an experiment: its spec goes into the database, and a driver for it to the cluster.

Nothing of it is uploaded as files: the driver is `shoal resume`, which finds all it needs in the
database. What is to happen is decided under a lock in the database, so two that submit at the same
instant, on whatever machines, start one driver; and the cluster refuses a submission that it has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from search.launch import rules
from search.launch.jobs import ClusterError, JobServer
from search.launch.rules import Decision, Job, Step
from storage.errors import ExperimentBusy
from storage.experiments import Experiments
from storage.launches import Launches

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
    from storage.database import Database
    from storage.records import ExperimentRecord, LaunchRecord

GONE = "its driver died, or its cluster did"


@dataclass(frozen=True, slots=True)
class Submission:
    """What became of a submission."""

    experiment: ExperimentRecord
    launch: LaunchRecord
    started: bool
    """False: it runs already, and nothing was started."""
    outdated: bool = False
    """What runs is an earlier version of the experiment; this one waits for its end."""


def submit(
    database: Database,
    spec: ExperimentSpec,
    server: JobServer,
    *,
    options: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Submission:
    """Have an experiment run on a cluster, or find that it does.

    `options`: of `shoal resume`, without secrets; `environment`: of the driver, which everybody sees who may
    look at the cluster's jobs. Raises `ExperimentExists` as `shoal run` does, `ExperimentBusy` if a process
    that is no launch runs it, `ClusterError`; after the latter, submitting again is always right.
    """
    from search.control.controller import find_or_create

    # Before anything is made: what nobody was told to run, workers without Ray would take up.
    server.version()
    experiments, launches = Experiments(database), Launches(database)
    experiment, existed = find_or_create(experiments, spec)
    with launches.deciding(experiment.id):
        newest = launches.newest(experiment.id)
        decision = _decide(database, experiment, newest, server)
        if decision.step is Step.REFUSE:
            raise ExperimentBusy(
                f"the experiment {experiment.name!r} is being run by a process elsewhere: wait for it, "
                f"or `shoal stop {experiment.name}`"
            )
        if decision.step is Step.FOLLOW:
            assert newest is not None
            outdated = spec.to_json() != experiment.spec
            return Submission(experiment, newest, started=False, outdated=outdated)
        if existed:
            experiment = experiments.grow(experiment.id, spec.to_json(), spec.studies())
        # Whoever submits wants it to run, whatever was asked before; its driver heeds what is asked later.
        experiments.request_stop(experiment.id, flag=False)
        launch = _noted(launches, experiment, newest, decision, address=server.address, options=options)
        command = rules.entrypoint(experiment.name, launch.generation, options)
        started = server.submit(launch.submission, command, environment or {})
        return Submission(experiment, launch, started=started)


def _decide(
    database: Database, experiment: ExperimentRecord, newest: LaunchRecord | None, server: JobServer
) -> Decision:
    job, same_place = Job.UNKNOWN, True
    if newest is not None:
        same_place = newest.address == server.address
        job = job_of(newest, server)
    controlled = experiment.id in Experiments(database).controlled([experiment.id])
    return rules.decide(newest, job, controlled=controlled, same_place=same_place)


def job_of(launch: LaunchRecord, server: JobServer) -> Job:
    """What the cluster of a launch says of it. Raises `ClusterError` if that is `server`'s and it is away."""
    if launch.address == server.address:
        return server.look(launch.submission).state
    try:
        # Made elsewhere, perhaps on a cluster that is long gone: the database has the last word. Without our
        # token: that address is from the database, and a token goes where its owner sends it alone.
        return JobServer(launch.address, timeout=server.timeout).look(launch.submission).state
    except ClusterError:
        return Job.UNREACHABLE


def _noted(
    launches: Launches,
    experiment: ExperimentRecord,
    newest: LaunchRecord | None,
    decision: Decision,
    *,
    address: str,
    options: Sequence[str],
) -> LaunchRecord:
    """The launch's record, made before the cluster hears of it: what it does can always be found."""
    if decision.step is Step.REPEAT:
        assert newest is not None
        return newest
    if newest is not None:
        launches.lose(experiment.id, newest.generation, GONE)
    name = rules.submission_name(experiment.name, decision.generation)
    return launches.add(experiment.id, decision.generation, name, address, {"options": list(options)})
