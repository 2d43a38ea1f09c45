"""Half a minute of random faults; the long one is `python -m tests.faults.nemesis`."""

from __future__ import annotations

from pathlib import Path

import pytest

from storage.database import Database
from storage.embedded import EmbeddedPostgres
from storage.ledger import LEASE_VARIABLE
from tests.faults import nemesis
from tests.faults.objectives import PACE_VARIABLE

SECONDS, WORKERS, TRIALS, SEED = 30.0, 4, 60, 5


@pytest.mark.slow
def test_half_a_minute_of_random_faults(
    database: Database, server: EmbeddedPostgres, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LEASE_VARIABLE, str(nemesis.LEASE_SECONDS))
    monkeypatch.setenv(PACE_VARIABLE, str(nemesis.pace(SECONDS, WORKERS, TRIALS)))
    tally = nemesis.storm(
        server, database, folder, seconds=SECONDS, workers=WORKERS, trials=TRIALS, seed=SEED
    )
    print("\n".join(tally.lines()))
    assert tally.violations == []
    assert sum(tally.faults.values()) >= 3
