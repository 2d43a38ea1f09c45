"""What a worker remembers of trials that pause: how much, for how long, and when it is used."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from objectives.base import StateCopy
from objectives.checkpoint_files import TrialFolder
from search.trials import copies as copies_module
from search.trials import starting
from search.trials.claims import Claim, Verdict
from search.trials.copies import SHARE, Copies, Held, usual_limit
from search.trials.study import Drawn
from storage.checker import check_history
from storage.database import Database
from tests.contracts.claims import lease_of, report_of, save
from tests.contracts.experiments import pausing_spec, prepared
from tests.search.trials.test_promoting import all_rest, claim_one, train


def a_copy(epoch: int = 1, size: int = 10, fingerprint: str = "kind") -> StateCopy:
    return StateCopy(fingerprint, report_of(epoch), f"state {epoch}", size)


def held(epoch: int = 1, size: int = 10, attempt: int = 1) -> Held:
    return Held(a_copy(epoch, size), attempt, None)


class TestCopies:
    def test_a_copy_is_given_to_the_next_lease_of_its_trial_once(self) -> None:
        copies, kept = Copies(lambda _: 100), held(epoch=3)
        copies.put(7, kept)
        assert (copies.size, len(copies)) == (10, 1)
        lease = lease_of(7, attempt=2, last_step=3)
        assert copies.take(lease, "kind") is kept
        assert (copies.size, len(copies)) == (0, 0)
        assert copies.take(lease, "kind") is None

    @pytest.mark.parametrize(
        ("attempt", "last_step", "fingerprint"),
        [
            (3, 3, "kind"),  # somebody had it, and gave it back or lost it before an epoch's end
            (3, 5, "kind"),  # somebody went on with it
            (2, 2, "kind"),  # the epoch at which it was made was never stored
            (2, None, "kind"),
            (2, 3, "another"),  # the experiment's data or its own config are others
            (1, 3, "kind"),
        ],
    )
    def test_one_that_is_not_what_the_trial_is_now_is_let_go_of(
        self, attempt: int, last_step: int | None, fingerprint: str
    ) -> None:
        copies = Copies(lambda _: 100)
        copies.put(7, held(epoch=3))
        assert copies.take(lease_of(7, attempt=attempt, last_step=last_step), fingerprint) is None
        assert (copies.size, len(copies)) == (0, 0)

    def test_those_that_were_made_longest_ago_make_room(self) -> None:
        copies = Copies(lambda _: 35)
        for trial_id in (1, 2, 3):
            copies.put(trial_id, held())
        copies.put(1, held(attempt=2))  # it was promoted, and rests again
        copies.put(4, held(size=15))
        lease = {trial_id: lease_of(trial_id, attempt=2, last_step=1) for trial_id in (2, 3, 4)}
        assert copies.take(lease[2], "kind") is None
        assert copies.take(lease_of(1, attempt=3, last_step=1), "kind") is not None
        assert copies.take(lease[3], "kind") is not None
        assert copies.take(lease[4], "kind") is not None

    def test_the_bound_holds_whatever_comes_and_goes(self) -> None:
        chance, limit = random.Random(3), 100
        copies = Copies(lambda _: limit)
        there: dict[int, int] = {}
        for turn in range(2000):
            trial_id = chance.randrange(30)
            if turn % 100 == 0:
                limit = chance.randrange(50, 300)
            if chance.random() < 0.3:
                copies.take(lease_of(trial_id, attempt=2, last_step=1), "kind")
                there.pop(trial_id, None)
                continue
            size = chance.randrange(1, 120)
            copies.put(trial_id, held(size=size))
            there.pop(trial_id, None)
            there |= {trial_id: size} if size <= limit else {}
            while sum(there.values()) > limit:
                there.pop(next(iter(there)))
            assert copies.size == sum(there.values()) <= limit
            assert len(copies) == len(there)

    def test_one_that_takes_more_than_there_is_room_for_is_not_kept(self) -> None:
        copies = Copies(lambda _: 25)
        copies.put(1, held())
        copies.put(2, held(size=26))
        assert (copies.size, len(copies)) == (10, 1)

    def test_the_usual_bound_is_a_share_of_what_is_free_with_the_copies_that_are_held(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        free = {"bytes": 1000}
        monkeypatch.setattr(copies_module, "free_memory", lambda: free["bytes"])
        copies = Copies()
        for trial_id in range(40):
            copies.put(trial_id, held(size=10))
            free["bytes"] = 1000 - copies.size
        assert copies.size == 10 * (1000 // SHARE // 10)
        assert usual_limit(copies.size) == 1000 // SHARE
        free["bytes"] = 0  # another process took what was left
        copies.put(99, held(size=1))
        assert copies.size <= 1000 // SHARE // SHARE


class TestClaims:
    def claimed(self, folder: Path, copies: Copies | None, *, attempt: int = 2, last_step: int = 2) -> Claim:
        drawn = Drawn({"learning_rate": 0.1, "lambda": 0.0}, 17, None)
        lease = lease_of(0, number=0, attempt=attempt, last_step=last_step)
        return starting.claim_of(
            pausing_spec(), folder, lease, drawn, place=("random", 0), retraining=None, until=4, copies=copies
        )

    def test_where_there_is_a_copy_no_file_is_looked_at(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        kind, copies = self.claimed(tmp_path, None).fingerprint, Copies(lambda _: 100)
        monkeypatch.setattr(TrialFolder, "newest", lambda *_, **__: pytest.fail("a file is read"))
        copy, path = a_copy(2, fingerprint=kind), tmp_path / "not there"
        copies.put(0, Held(copy, 1, path))
        start = self.claimed(tmp_path, copies).start
        assert start.checkpoint == path, "for an engine that has no use for the copy"
        assert start.carried is not None
        assert start.carried.take() is copy

    def test_a_stale_copy_is_not_used_and_the_file_is(self, tmp_path: Path) -> None:
        claim, copies = self.claimed(tmp_path, None), Copies(lambda _: 100)
        save(claim, 2)
        for attempt, last_step in ((1, 2), (0, 2)):
            copies.put(0, Held(a_copy(last_step, fingerprint=claim.fingerprint), attempt, None))
            start = self.claimed(tmp_path, copies, attempt=attempt + 2, last_step=last_step).start
            assert start.carried is None
            assert start.checkpoint is not None
            assert start.checkpoint.read_text() == "state 2"
            assert len(copies) == 0

    def test_epochs_that_were_taken_over_of_a_twin_make_a_copy_useless(self, tmp_path: Path) -> None:
        claim, copies = self.claimed(tmp_path, None), Copies(lambda _: 100)
        copies.put(0, Held(a_copy(2, fingerprint=claim.fingerprint), 1, None))
        claim = self.claimed(tmp_path, copies)
        assert claim.start.carried is not None
        assert starting.after_replay(claim, 3, 3, "study").start.carried is None


def remember(copies: Copies, claim: Claim, epoch: int) -> StateCopy:
    """What a worker does with a trial that pauses."""
    save(claim, epoch)
    copy = a_copy(epoch, fingerprint=claim.fingerprint)
    copies.put(
        claim.trial_id, Held(copy, claim.lease.attempt, claim.folder.path_of(epoch, claim.lease.attempt))
    )
    return copy


class TestBroker:
    def test_who_paused_a_trial_promotes_it_from_memory(self, database: Database) -> None:
        copies = Copies(lambda _: 1000)
        with prepared(database, pausing_spec()) as running, running.broker(copies=copies) as broker:
            first = claim_one(broker)
            copy = remember(copies, first, 1)
            assert train(broker, first, 0.9) is Verdict.PAUSE
            train(broker, claim_one(broker), 0.1)
            again = claim_one(broker)
            assert (again.lease.number, again.lease.attempt) == (0, 2)
            assert again.start.carried is not None
            assert again.start.carried.take() is copy
            assert again.start.checkpoint is not None
            assert again.start.checkpoint.read_text() == "state 1"

    def test_a_copy_that_another_worker_went_on_from_is_not_used(self, database: Database) -> None:
        mine, theirs = Copies(lambda _: 1000), Copies(lambda _: 1000)
        with (
            prepared(database, pausing_spec(4, epochs=8)) as running,
            running.broker("one", copies=mine) as one,
            running.broker("other", copies=theirs) as other,
        ):
            claims = one.claim(4)
            for claim, value in zip(claims, (0.9, 0.8, 0.2, 0.1), strict=True):
                remember(mine, claim, 1)
                train(one, claim, value)
            stale = {claim.lease.number: claim.trial_id for claim in claims}
            for _ in range(2):
                taken = claim_one(other)
                assert taken.start.carried is None, "the other has paused none"
                assert taken.start.checkpoint is not None, "but reads what was saved"
                remember(theirs, taken, 2)
                train(other, taken, 0.9 - 0.1 * taken.lease.number)
            up = claim_one(one)
            assert (up.lease.number, up.lease.attempt, up.lease.last_step) == (0, 3, 2)
            assert up.start.carried is None
            assert up.start.checkpoint is not None
            assert up.start.checkpoint.read_text() == "state 2"
            assert len(mine) == len(stale) - 1

    def test_those_that_are_never_promoted_leave_memory(self, database: Database) -> None:
        copies = Copies(lambda _: 1000)
        with prepared(database, pausing_spec(4)) as running, running.broker(copies=copies) as broker:
            for claim in all_rest(broker, 0.1, 0.2, 0.4, 0.3):
                remember(copies, claim, 1)
            for _ in range(3):
                claim = claim_one(broker)
                if claim.leaves_after < 4:
                    remember(copies, claim, claim.leaves_after)
                train(broker, claim, claim.lease.number / 10)
            assert len(copies) == 3
            assert broker.claim(1) == broker.claim(1) == []
            assert broker.exhausted
            assert (len(copies), copies.size) == (0, 0)
        assert check_history(database, running.experiment.id, at_rest=True) == []
