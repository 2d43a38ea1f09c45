"""What a trial starts with when an engine is to train it: its config, its seeds, its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.base import Carried, TrialStart, derive_seed
from objectives.checkpoint_files import TrialFolder, epoch_of, fingerprint
from search.trials.claims import Claim, Shared

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
    from search.trials.copies import Copies
    from search.trials.retraining import RetrainingStudy
    from search.trials.study import Drawn
    from storage.ledger import Lease


def claim_of(
    spec: ExperimentSpec,
    root: Path,
    lease: Lease,
    drawn: Drawn,
    *,
    place: tuple[str, int],
    retraining: RetrainingStudy | None,
    until: int | None = None,
    copies: Copies | None = None,
) -> Claim:
    """The claim on a trial whose values are drawn; `root` is where the experiment's checkpoints are.

    `place`: the study's method and replicate; `retraining`: the study, if it is one of winners; `until`:
    the epoch after which the trial pauses; `copies`: what this worker remembers of those that have.
    """
    method, replicate = place
    folder = folder_of(root, lease, place=place, retrained=retraining is not None)
    start = TrialStart(
        trial_id=lease.trial_id,
        config=spec.config(drawn.values),
        seed=drawn.seed,
        split_seed=_split_seed(spec.seed, replicate),
        score_test=retraining is not None,
    )
    data = None if spec.data is None else spec.data.data_spec()
    kind = fingerprint(start, data)
    retrains = None if retraining is None else retraining.retrains(lease)
    twins: tuple[TrialFolder, ...] = ()
    if drawn.common is not None:
        places = [(name, str(replicate), str(drawn.common)) for name in spec.methods if name != method]
        twins = tuple(TrialFolder(root, *place) for place in places)
    held = None if copies is None else copies.take(lease, kind)
    if held is not None:
        # Whether the file is whole need not be known: it is not read.
        start = replace(start, checkpoint=held.path, carried=Carried(held.copy))
        return Claim(lease, drawn.values, start, folder, kind, retrains, drawn.common, twins, until=until)
    checkpoint = folder.newest(kind, at_most=lease.last_step)
    if checkpoint is None and until is not None and lease.last_step:
        # A trial that paused after epochs which it had taken over has saved nothing itself.
        checkpoint = _furthest(twins, kind, lease.last_step)
    if checkpoint is not None:
        start = replace(start, checkpoint=checkpoint)
    return Claim(lease, drawn.values, start, folder, kind, retrains, drawn.common, twins, until=until)


@lru_cache(maxsize=64)
def _split_seed(seed: int, replicate: int) -> int:
    """What all trials of a replicate divide their images by."""
    return derive_seed(seed, replicate, "split")


def folder_of(root: Path, lease: Lease, *, place: tuple[str, int], retrained: bool = False) -> TrialFolder:
    """Where a trial's checkpoints are."""
    method, replicate = place
    number = f"retrained-{lease.number}" if retrained else str(lease.number)
    return TrialFolder(root, method, str(replicate), number)


def _furthest(folders: Iterable[TrialFolder], kind: str, last: int) -> Path | None:
    """The checkpoint of the latest epoch up to `last` in any of the folders."""
    found = [path for folder in folders if (path := folder.newest(kind, at_most=last))]
    return max(found, key=epoch_of, default=None)


def after_replay(claim: Claim, first: int, last: int, study_name: str) -> Claim:
    """The claim on a trial whose epochs `first` … `last` were taken over from a twin, and that goes on alone.

    From the newest checkpoint that there is on this machine, its own or a twin's; without one from its
    beginning, and then nothing was saved by its twin.
    """
    checkpoint = _furthest((claim.folder, *claim.twins), claim.fingerprint, last)
    saved = 0 if checkpoint is None else max(0, epoch_of(checkpoint) - first + 1)
    return replace(
        claim,
        start=replace(claim.start, checkpoint=checkpoint, carried=None),
        replayed=last,
        shared=Shared(study_name, saved) if saved else None,
    )
