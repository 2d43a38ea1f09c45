"""What a trial starts with when an engine is to train it: its config, its seeds, its checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from objectives.base import TrialStart, derive_seed
from objectives.checkpoint_files import TrialFolder, epoch_of, fingerprint
from search.trials.claims import Claim, Shared

if TYPE_CHECKING:
    from search.experiment.spec import ExperimentSpec
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
) -> Claim:
    """The claim on a trial whose values are drawn; `root` is where the experiment's checkpoints are.

    `place`: the study's method and replicate; `retraining`: the study, if it is one of winners.
    """
    method, replicate = place
    number = str(lease.number) if retraining is None else f"retrained-{lease.number}"
    folder = TrialFolder(root, method, str(replicate), number)
    start = TrialStart(
        trial_id=lease.trial_id,
        config=spec.config(drawn.values),
        seed=drawn.seed,
        split_seed=derive_seed(spec.seed, replicate, "split"),
        score_test=retraining is not None,
    )
    data = None if spec.data is None else spec.data.data_spec()
    kind = fingerprint(start, data)
    start = replace(start, checkpoint=folder.newest(kind, at_most=lease.last_step))
    retrains = None if retraining is None else retraining.retrains(lease)
    twins: tuple[TrialFolder, ...] = ()
    if drawn.common is not None:
        places = [(name, str(replicate), str(drawn.common)) for name in spec.methods if name != method]
        twins = tuple(TrialFolder(root, *place) for place in places)
    return Claim(lease, drawn.values, start, folder, kind, retrains, drawn.common, twins)


def after_replay(claim: Claim, first: int, last: int, study_name: str) -> Claim:
    """The claim on a trial whose epochs `first` … `last` were taken over from a twin, and that goes on alone.

    From the newest checkpoint that there is on this machine, its own or a twin's; without one from its
    beginning, and then nothing was saved by its twin.
    """
    folders: Iterable[TrialFolder] = (claim.folder, *claim.twins)
    found = [path for folder in folders if (path := folder.newest(claim.fingerprint, at_most=last))]
    checkpoint = max(found, key=epoch_of, default=None)
    saved = 0 if checkpoint is None else max(0, epoch_of(checkpoint) - first + 1)
    return replace(
        claim,
        start=replace(claim.start, checkpoint=checkpoint),
        replayed=last,
        shared=Shared(study_name, saved) if saved else None,
    )
