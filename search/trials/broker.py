"""Between a worker and the database: hands out trials, stores what the worker says of them.

A trial is held by a lease (`storage.ledger`). A worker that dies at any point leaves its leases to
run out; then its trials go back to the queue, and nothing else has to be cleaned up, because the
trial's number decides its seed, its seed and values decide its curve, and its checkpoints lie where
the next worker of this machine looks. What is written goes out for a whole pool of slots at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from search.experiment.spec import ExperimentSpec
from search.trials import endings, placing
from search.trials.claims import Claim, Reported, Verdict, ends, is_repetition, pauses
from search.trials.holdings import Holdings, LeasesLost
from search.trials.sharing import Sharing
from search.trials.standings import Standings
from search.trials.starting import claim_of, folder_of
from search.trials.study import (
    SearchStudy,
    StudyDeleted,
    TrialUnusable,
    batched,
    quiet_optuna,
    study_lock,
)
from search.work.saving import checkpoint_folder
from storage.crowds import LEISURE, in_line
from storage.errors import StudyNotFound
from storage.ledger import Draw, Ending, EpochWrite, Lease, lease_seconds
from storage.twins import Twins

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

    from objectives.base import TrialFailure
    from objectives.checkpoint_files import TrialFolder
    from search.trials.copies import Copies
    from search.trials.retraining import RetrainingStudy
    from search.trials.study import Drawn
    from storage.database import Database
    from storage.ledger import Ledger
    from storage.records import ExperimentRecord


class Broker:
    """Claims trials of one experiment for one worker, and writes what happens to them.

    One thread. Errors of the database leave every method; `LeasesLost` says that it was away for
    so long that everything held is lost, and that going on means to `recover` and claim anew.
    """

    def __init__(
        self,
        database: Database,
        storage: BaseStorage,
        experiment: ExperimentRecord,
        spec: ExperimentSpec,
        *,
        ledger: Ledger,
        worker_id: int,
        copies: Copies | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`copies`: what the worker remembers of trials that pause; None: nothing."""
        quiet_optuna()
        self._copies = copies
        self._database = database
        self._storage = storage
        self._experiment = experiment
        self._ledger = ledger
        self._worker_id = worker_id
        self._clock = clock
        self._folder = checkpoint_folder(experiment)
        self.holdings = Holdings(ledger, lease_seconds=lease_seconds(), clock=clock)
        self._parting: dict[int, tuple[TrialFolder, bool]] = {}
        self._sweep = False
        self._judged = spec.pruner.stops
        self.sharing = Sharing(Twins(database, experiment.id), judged=self._judged, clock=clock)
        self.adopt(spec)

    def adopt(self, spec: ExperimentSpec) -> None:
        """Go by another version of the experiment from the next claim on: it may have grown."""
        self._spec = spec
        self._standings = Standings(self._database, self._storage, self._experiment, spec, clock=self._clock)

    @property
    def exhausted(self) -> bool:
        """Whether no study will give this worker another trial, as far as was read last.

        Trials that run elsewhere may yet come back if their worker dies: then somebody has to be
        hired again. But while others end the last trials of a search, there may be winners to retrain.
        """
        return not self.sharing and self._standings.exhausted

    # Claiming

    def claim(self, wanted: int) -> list[Claim]:
        """Up to so many trials to train. None: not now, or (see `exhausted`) never again.

        Goes on to the next study where another worker is asking at this moment, so that an ask
        that takes long (a Gaussian process) holds up nobody. A study that was deleted is left out.
        Raises `DatabaseFull` where the server has no connection left and this worker holds trials: it does
        not wait in line for more of them, for what it has to say of these comes first.
        """
        with in_line(None if self.holdings else LEISURE):
            return self._claim(wanted)

    def _claim(self, wanted: int) -> list[Claim]:
        if self._sweep:
            # Trials of ours whose leases ran out may be nobody's yet, and there may be no controller.
            self.recover()
        claims: list[Claim] = []
        passed: set[str] = set()
        try:
            claims += self.sharing.freed(wanted)
            while len(claims) < wanted and (shares := self._standings.shares(wanted - len(claims), passed)):
                for name, count in shares.items():
                    found = self._claim_unless_deleted(name, count)
                    claims += self.sharing.sift(found)
                    if len(found) < count:
                        passed.add(name)
                claims += self.sharing.freed(wanted - len(claims))
        except BaseException:
            for claim in claims:
                self.release(claim)
            raise
        self._standings.found(bool(claims))
        return claims

    def _claim_unless_deleted(self, name: str, wanted: int) -> list[Claim]:
        try:
            return self._claim_from(name, wanted)
        except StudyDeleted as gone:
            self._standings.leave_out(gone)
            return []

    def _claim_from(self, name: str, wanted: int) -> list[Claim]:
        """Up to so many trials of one study, if nobody else is asking it."""
        # For longer than leases last only a process that was stopped keeps it.
        with self._database.lock(study_lock(name), wait=False, idle_seconds=2 * lease_seconds()) as held:
            if not held:
                return []
            study = self._standings.study(name)
            claims: list[Claim] = []
            # What an adaptive sampler draws depends on the draw before, so that has to be stored.
            for count in [1] * wanted if study.adaptive else [wanted]:
                leases: list[Lease] = []
                try:
                    found = self._claim_under_lock(study, count, leases)
                except BaseException:
                    for lease in (*leases, *(claim.lease for claim in claims)):
                        self._part(Ending(lease=lease, state="released"))
                    raise
                claims += found
                if not found:
                    break
            return claims

    def _claim_under_lock(
        self, study: SearchStudy | RetrainingStudy, wanted: int, leases: list[Lease]
    ) -> list[Claim]:
        """Fills `leases` as it gets them, for the caller to give back should something go wrong."""
        drawn: dict[int, Drawn] = {}
        unusable: list[Ending] = []
        with batched(self._storage):
            load = self._standings.read_locked(study)
            at_rest = placing.is_at_rest(load, study.limits)
            starts = placing.starts(load, study.limits, wanted, study.promised)
            if not (at_rest or starts.total):
                return []
            among = study.resting() if at_rest else study.queued(starts)
            waiting = starts.waiting if among is None else len(among)
            try:
                leases += self._ledger.claim(
                    study.name, self._worker_id, waiting=waiting, new=starts.new, of=load.total, among=among
                )
            except StudyNotFound:
                raise StudyDeleted(study.name) from None
            self.holdings.take(leases)
            for lease in leases:
                if not at_rest:
                    self._standings.begun(study)
                try:
                    drawn[lease.token] = study.draw(lease)
                except TrialUnusable as misfit:
                    notes = {"reason": str(misfit)}
                    unusable.append(Ending(lease=lease, state="failed", reason=str(misfit), attributes=notes))
        draws = [draw for found in drawn.values() if (draw := found.draw) is not None]
        if at_rest:
            self._end_resting(study, [lease for lease in leases if lease.token in drawn])
        self._write(draws=draws, endings=unusable)
        return [
            self._begin(study, lease, drawn[lease.token])
            for lease in leases
            if lease.token in drawn and lease in self.holdings
        ]

    def _end_resting(self, study: SearchStudy | RetrainingStudy, leases: Sequence[Lease]) -> None:
        """End, with the next write, the trials of a study that promotes none any more."""
        place = self._standings.places[study.name]
        for lease in leases:
            if self._copies is not None:
                self._copies.drop(lease.trial_id)
            self._part(endings.never_promoted(lease), folder_of(self._folder, lease, place=place))
        # It is over now, and its winner is to be retrained.
        self._standings.spoil([study.name])

    def _begin(self, study: SearchStudy | RetrainingStudy, lease: Lease, drawn: Drawn) -> Claim:
        return claim_of(
            self._spec,
            self._folder,
            lease,
            drawn,
            place=self._standings.places[study.name],
            retraining=self._standings.winners.studies.get(study.name),
            until=study.pause_after(lease.last_step),
            copies=self._copies,
        )

    # Writing

    def store(self, reported: Sequence[Reported]) -> dict[int, Verdict]:
        """Store a pool's epochs in one write: token → verdict, of the trials for which that is all.

        Trials that trained to their end are complete with the same write, and those that pause are given
        back. The others are to be judged.
        """
        verdicts = {one.claim.lease.token: Verdict.TAKEN for one in reported}
        reported = [one for one in reported if one.claim.lease in self.holdings]
        for one in filter(is_repetition, reported):
            verdicts[one.claim.lease.token] = Verdict.CONTINUE
            if one.leaving or ends(one):
                self.release(one.claim)
        reported = [one for one in reported if not is_repetition(one)]
        if not reported:
            return verdicts
        refused = self._write(
            epochs=[
                EpochWrite(lease=one.claim.lease, report=one.report, value=endings.value_of(self._spec, one))
                for one in reported
            ],
            endings=[
                *(endings.completed(self._spec, one) for one in reported if ends(one)),
                *(endings.paused(one) for one in reported if pauses(one)),
            ],
        )
        for one in reported:
            token = one.claim.lease.token
            if token in refused:
                continue
            if ends(one):
                verdicts[token] = Verdict.FINISH
                one.claim.folder.remove()
            elif pauses(one):
                verdicts[token] = Verdict.PAUSE
            else:
                verdicts.pop(token, None)
        self.sharing.heard(verdicts)
        return verdicts

    def judge(self, reported: Sequence[Reported]) -> dict[int, Verdict]:
        """What becomes of trials whose epochs are stored, on one reading: token → verdict.

        What follows from it (pruned, given back) is written with the next `flush`.
        """
        pruned = self._pruned(reported)
        verdicts = {}
        for one in reported:
            token = one.claim.lease.token
            verdicts[token] = Verdict.PRUNE if token in pruned else Verdict.CONTINUE
            if token in pruned:
                self._part(endings.pruned(one), one.claim.folder)
            elif one.leaving:
                self.release(one.claim)
        self.sharing.heard(verdicts)
        return verdicts

    def _pruned(self, reported: Sequence[Reported]) -> set[int]:
        """Tokens of the trials that stop here."""
        by_study: dict[str, list[Reported]] = {}
        for one in reported:
            if one.claim.retrains is None:
                by_study.setdefault(one.claim.lease.study_name, []).append(one)
        stopped: set[int] = set()
        with batched(self._storage, by_study if self._judged else ()):
            for name, ones in by_study.items():
                if name not in self._standings.places:
                    continue  # it was deleted: whatever is written of these next is refused
                asked = [(one.claim.lease.number, one.report.epoch) for one in ones]
                try:
                    stops = self._standings.study(name).stops(asked)
                except StudyDeleted:
                    continue  # the same
                stopped |= {one.claim.lease.token for one, stop in zip(ones, stops, strict=True) if stop}
        return stopped

    def fail(self, claim: Claim, failure: TrialFailure) -> None:
        """The trial raised: it is run again if the machine is to blame, else it has failed.

        Written with the next `flush`, as are `retry` and `release`.
        """
        if failure.retryable:
            self.retry(claim, failure.reason, failure.traceback)
            return
        self._part(
            Ending(
                lease=claim.lease,
                state="failed",
                reason=failure.reason,
                traceback=failure.traceback,
                attributes={"reason": failure.reason},
            ),
            claim.folder,
        )

    def retry(self, claim: Claim, reason: str, traceback: str | None = None) -> None:
        """The attempt has failed; the trial is run again, unless this was its last attempt."""
        self._part(Ending(lease=claim.lease, state="retry", reason=reason, traceback=traceback), claim.folder)

    def release(self, claim: Claim) -> None:
        """Give a trial back; whoever claims it next goes on from its checkpoint."""
        self._part(Ending(lease=claim.lease, state="released"))

    def flush(self) -> None:
        """Write the endings that wait for it, and prolong the leases if that is due."""
        if self.holdings.has_to_write:
            self._write()

    def lost(self) -> list[int]:
        """Tokens of leases that were lost since this was asked last."""
        leases = self.holdings.lost()
        self._sweep = self._sweep or bool(leases)
        self._standings.spoil({lease.study_name for lease in leases})
        self.sharing.drop([lease.token for lease in leases])
        return [lease.token for lease in leases]

    def recover(self) -> None:
        """After leases were lost: put back in the queue what nobody holds, our own trials among it.

        Raises `DatabaseUnreachable` while the database is still away.
        """
        self._ledger.expire(self._experiment.id)
        self._sweep = False
        self._standings.spoil()

    def _part(self, ending: Ending, folder: TrialFolder | None = None) -> None:
        """End a trial with the next write; its checkpoints go once that is done and the trial is over."""
        if self.holdings.end(ending):
            self._note(ending)
            if folder is not None:
                self._parting[ending.lease.token] = (folder, ending.state == "retry")

    def _note(self, ending: Ending) -> None:
        """Keep what is known of a study up with an ending of ours, where it need not be read for that."""
        self.sharing.ended(ending.lease.trial_id)
        self._standings.ended(ending)

    def _write(
        self,
        *,
        draws: Sequence[Draw] = (),
        epochs: Sequence[EpochWrite] = (),
        endings: Sequence[Ending] = (),
    ) -> Mapping[int, str]:
        for ending in endings:
            self._note(ending)
        try:
            refused = self.holdings.write(draws=draws, epochs=epochs, endings=endings)
        except LeasesLost:
            self._parting = {}  # none of them ended here: who has them next goes on from their checkpoints
            raise
        parting, self._parting = self._parting, {}
        for token, (folder, again) in parting.items():
            if token not in refused and (not again or self.holdings.given_up(token)):
                folder.remove()
        return refused
