"""The driver of a submitted run: `shoal resume` on a cluster, which tells the database what becomes of it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from search.commands.running import RunOptions, conduct
from search.failures import ExitCode, bad_input, failure_of, not_found
from storage.errors import ExperimentNotFound

if TYPE_CHECKING:
    from search.control.events import Outcome

PATIENCE_SECONDS = 120.0
"""For a controller whose machine is gone: the database needs up to 90 s to see that its lock is free."""
URL_VARIABLES = ("SHOAL_DATABASE_URL", "SHOAL_DATABASE_URL_FILE")


def drive(experiment: str, generation: int, options: RunOptions) -> int:
    """Run an experiment as the launch of that generation. Raises what `conduct` raises, once it is noted.

    The exit code is noted as well: a driver's own may be lost with its cluster.
    """
    from search.experiment.spec import ExperimentSpec
    from storage.database import open_database
    from storage.experiments import Experiments
    from storage.launches import Launches

    if options.database is None and not any(os.environ.get(name) for name in URL_VARIABLES):
        # Not the embedded one, which would be started here, and be empty.
        raise bad_input(
            "this machine has not been told where the database is",
            next=f"set {' or '.join(URL_VARIABLES)} on the cluster's machines",
        )
    with open_database(options.database) as database:
        launches = Launches(database)
        try:
            stored = Experiments(database).get(experiment)
        except ExperimentNotFound as error:
            raise not_found(
                str(error),
                why=f"it was submitted with another database than {database.masked_url}",
                next="name the same database on both sides: --cluster-database, or the cluster's variables",
            ) from error
        launches.start(stored.id, generation)
        outcomes: list[Outcome] = []
        try:
            code = conduct(
                ExperimentSpec.from_json(stored.spec),
                options,
                f"shoal submit, or shoal resume {experiment}",
                patience_seconds=PATIENCE_SECONDS,
                ended=outcomes.append,
                launched=True,
            )
        except BaseException as error:
            failure = failure_of(error) if isinstance(error, Exception) else None
            code = failure.code if failure is not None else ExitCode.FAILED
            reason = failure.what if failure is not None else type(error).__name__
            launches.end(stored.id, generation, "failed", exit_code=code, reason=reason)
            raise
        outcome = outcomes[0]
        launches.end(stored.id, generation, outcome.state, exit_code=code, reason=outcome.reason)
        return code
