"""Checkpoints on this machine that no open trial uses, as a restored database leaves them behind.

Only folders of experiments that the database knows are looked at: others may be another database's. A trial
never takes what isn't its own (`objectives.checkpoint_files`), so they cost nothing but their place.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from search.work.saving import checkpoint_folder

if TYPE_CHECKING:
    from storage.database import Database


def orphans(database: Database) -> list[Path]:
    """The folders of trials that have ended or that the database doesn't know."""
    from storage.experiments import Experiments
    from storage.open_trials import open_trials

    found: list[Path] = []
    for experiment in Experiments(database).list():
        root = checkpoint_folder(experiment)
        there = sorted(path for path in root.glob("*/*/*") if path.is_dir())
        if there:
            wanted = {
                root / method / str(replicate) / (str(number) if role == "search" else f"retrained-{number}")
                for role, method, replicate, number in open_trials(database, experiment.id)
            }
            found += [path for path in there if path not in wanted]
    return found
