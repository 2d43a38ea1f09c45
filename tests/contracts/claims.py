"""Claims for tests that need no database."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from objectives.base import Choice, EpochReport, TrialConfig, TrialStart
from objectives.checkpoint_files import TrialFolder
from search.trials.claims import Claim
from storage.ledger import Lease


def lease_of(trial_id: int, *, token: int | None = None, attempt: int = 1, **changes: Any) -> Lease:
    """A lease of a trial of one study."""
    fields: dict[str, Any] = {
        "study_name": "study",
        "trial_id": trial_id,
        "number": trial_id,
        "attempt": attempt,
        "token": trial_id if token is None else token,
        "deadline": datetime(2000, 1, 1, tzinfo=UTC),
        "params": {},
        "fixed": {},
        "attributes": {},
        "last_step": None,
    }
    return Lease(**fields | changes)


def claim_of(
    trial_id: int, folder: Path, *, loss: str = "cross_entropy", epochs: int = 3, **lease: Any
) -> Claim:
    """A claim, with its checkpoint if there is one."""
    place = TrialFolder(folder, str(trial_id))
    start = TrialStart(
        trial_id=trial_id,
        config=TrialConfig(epochs=epochs, loss=Choice(loss)),
        seed=trial_id,
        split_seed=0,
        checkpoint=place.newest("fingerprint", at_most=epochs),
    )
    return Claim(lease_of(trial_id, **lease), {}, start, place, "fingerprint")


def report_of(epoch: int, value: float = 0.5, **changes: Any) -> EpochReport:
    """An epoch's report."""
    fields: dict[str, Any] = {
        "epoch": epoch,
        "train_loss": 1.0,
        "validation_loss": 1.0,
        "metrics": {"accuracy": value},
        "gradient_norm": 1.0,
        "learning_rate": 0.1,
        "seconds": 0.01,
        "images_per_second": 10.0,
    }
    return EpochReport(**fields | changes)


def save(claim: Claim, epoch: int) -> None:
    """Leave a checkpoint that says of which epoch it is."""
    claim.folder.save(
        lambda path: path.write_text(f"state {epoch}"),
        fingerprint=claim.fingerprint,
        epoch=epoch,
        attempt=claim.lease.attempt,
    )
