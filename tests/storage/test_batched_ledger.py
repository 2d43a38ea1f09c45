"""The ledger over Optuna's own tables: its contract, its round trips, and answers that get lost."""

from __future__ import annotations

import threading

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy import text

from storage import write_statements as writes
from storage.attempts import Attempts
from storage.batched_ledger import BatchedLedger
from storage.database import Database
from storage.failpoints import FailpointError, forget_visits
from storage.ledger import Written
from tests.contracts.ledger_contract import LedgerContract
from tests.contracts.ledger_writes import STUDY, draw_of, end, epoch_of, events, move_deadline
from tests.contracts.wire import Wire, wired


class TestBatchedLedger(LedgerContract):
    @pytest.fixture
    def ledger(self, database, optuna_storage, study) -> BatchedLedger:
        return BatchedLedger(database, optuna_storage)

    @pytest.fixture
    def wire(self, database_url, study):
        with wired(database_url) as wire:
            yield wire

    @pytest.fixture
    def distant(self, wire, experiment):
        """A ledger that reaches its database through the wire, connected."""
        with Database(wire.url) as database:
            ledger = BatchedLedger(database)
            self.worker_id = ledger.register("distant")
            wire.queries.clear()
            yield ledger

    # ---- round trips ----

    def test_everything_of_a_pool_is_one_round_trip(self, distant, wire, experiment):
        slots = 256
        leases = distant.claim(STUDY, self.worker_id, waiting=0, new=slots)
        assert (len(leases), len(wire.queries)) == (slots, 1)
        calls = [
            lambda: distant.write(draws=[draw_of(lease, attributes={"a": 1}) for lease in leases]),
            lambda: distant.write(beats=leases),
            lambda: distant.write(epochs=[epoch_of(lease, step) for lease in leases for step in (1, 2)]),
            lambda: distant.write(
                beats=leases[:64],
                draws=[draw_of(lease) for lease in leases[:10]],
                epochs=[epoch_of(lease, 3) for lease in leases],
                endings=[end(lease, state) for lease, state in zip(leases, STATES * 52, strict=False)],
            ),
            lambda: distant.claim(STUDY, self.worker_id, waiting=64, new=64),
            lambda: distant.expire(experiment.id),
            lambda: distant.retry_failed(experiment.id),
            lambda: distant.retire(self.worker_id),
        ]
        for call in calls:
            wire.queries.clear()
            call()
            assert len(wire.queries) == 1

    # ---- answers that get lost ----

    def test_a_claim_whose_answer_was_lost_is_found_again(self, distant, wire, study):
        wire.cut_after = lambda query: "'claimed'" in query
        leases = distant.claim(STUDY, self.worker_id, waiting=0, new=3)
        assert [lease.number for lease in leases] == [0, 1, 2]
        assert len(study.get_trials()) == 3
        assert distant.write(beats=leases).refused == {}

    @pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
    def test_a_write_whose_answer_was_lost_is_not_refused(self, distant, wire, study, cut, database):
        one, two, late = distant.claim(STUDY, self.worker_id, waiting=0, new=3)
        move_deadline(database, -3600, late.token)
        setattr(wire, cut, lambda query: "trial_intermediate_values" in query)
        written = distant.write(
            epochs=[epoch_of(one, 1), epoch_of(two, 1), epoch_of(late, 1)],
            endings=[end(one), end(two, "retry")],
        )
        assert set(written.refused) == {late.token}
        assert "ran out" in written.refused[late.token]
        assert study.get_trials()[0].state == TrialState.COMPLETE
        kinds = [kind for kind, _ in events(database)]
        assert (kinds.count("completed"), kinds.count("requeued"), kinds.count("refused")) == (1, 1, 1)

    def test_a_lost_answer_tells_who_was_given_up(self, distant, wire, study):
        for attempt in range(3):
            (lease,) = distant.claim(STUDY, self.worker_id, waiting=1, new=0 if attempt else 1)
            if attempt == 2:
                wire.cut_after = lambda query: "'given_up'" in query
            written = distant.write(endings=[end(lease, "retry")])
        assert written.given_up == {lease.token}

    @pytest.mark.parametrize("cut", ["cut_before", "cut_after"])
    def test_the_others_are_found_again_too(self, distant, wire, study, cut, database, experiment):
        worker = distant.register("another")
        first, second = distant.claim(STUDY, worker, waiting=0, new=2)
        distant.write(endings=[end(second, "failed")])
        setattr(wire, cut, lambda query: "'retried'" in query)
        assert [retried.new_number for retried in distant.retry_failed(experiment.id)] == [2]
        move_deadline(database, -3600)
        setattr(wire, cut, lambda query: "'expired'" in query)
        assert [expired.number for expired in distant.expire(experiment.id)] == [first.number]
        setattr(wire, cut, lambda query: "'retired'" in query)
        distant.retire(worker)
        setattr(wire, cut, lambda query: "'registered'" in query)
        distant.register("a third")
        assert database.scalar("SELECT count(*) FROM shoal.workers") == 3
        kinds = [kind for kind, _ in events(database)]
        assert [kinds.count(kind) for kind in ("registered", "retired", "expired", "retried")] == [3, 1, 1, 1]

    def test_a_write_that_comes_once_more_behind_its_repetition_does_nothing(
        self, distant, wire, study, database
    ):
        """The server may find a message of a connection that broke only after what was sent in its place."""
        first, second = distant.claim(STUDY, self.worker_id, waiting=0, new=2)
        wire.queries.clear()
        distant.write(
            draws=[draw_of(first), draw_of(second)],
            epochs=[epoch_of(second, 1)],
            endings=[end(first, "released"), end(second)],
        )
        (message,) = wire.queries
        (again,) = distant.claim(STUDY, self.worker_id, waiting=1, new=0)
        before = events(database)
        # As it was sent, and as it is where something may be there already.
        for late in (message, upserting(message)):
            database.script(late.replace("%", "%%"), ())
        assert events(database) == before
        states = [trial.state for trial in study.get_trials()]
        assert states == [TrialState.RUNNING, TrialState.COMPLETE]
        assert distant.write(endings=[end(again)]).refused == {}

    # ---- what a stranger wrote of the same trial ----

    def test_what_a_stranger_wrote_is_written_over(self, distant, wire, study, database):
        lease, other = distant.claim(STUDY, self.worker_id, waiting=0, new=2)
        strange = {
            "trial_params (trial_id, param_name, param_value, distribution_json)": "'lr', 0.9, '{}'",
            "trial_user_attributes (trial_id, key, value_json)": "'a', '0'",
            "trial_intermediate_values (trial_id, step, intermediate_value, intermediate_value_type)": (
                "1, 9, 'FINITE'"
            ),
            "trial_values (trial_id, objective, value, value_type)": "0, 9, 'FINITE'",
        }
        with database.engine.begin() as connection:
            for table, row in strange.items():
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES ({lease.trial_id}, {row})")
        for said in (
            {"draws": [draw_of(one, attributes={"a": 1}) for one in (lease, other)]},
            {"epochs": [epoch_of(one, 1, 0.25) for one in (lease, other)]},
            {"endings": [end(one, value=0.5) for one in (lease, other)]},
        ):
            wire.queries.clear()
            assert distant.write(**said) == Written()
            assert len(wire.queries) == 2
        for trial in study.get_trials():
            assert (trial.params["lr"], trial.user_attrs["a"]) == (0.1, 1)
            assert (trial.intermediate_values, trial.values) == ({1: 0.25}, [0.5])
        kinds = [kind for kind, _ in events(database)]
        assert [kinds.count(kind) for kind in ("drawn", "completed", "refused")] == [2, 2, 0]

    # ---- together with others ----

    def test_a_long_lock_on_the_study_holds_up_nothing_but_its_claims(self, ledger, worker, study, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        with database.begin() as connection:
            connection.execute(
                text("SELECT FROM studies WHERE study_name = :name FOR UPDATE"), {"name": STUDY}
            )
            assert ledger.claim(STUDY, worker, waiting=0, new=1) == []
            assert ledger.write(epochs=[epoch_of(lease, 1)]).refused == {}
            assert ledger.claim("e/random/0", worker, waiting=0, new=1)
        assert ledger.claim(STUDY, worker, waiting=0, new=1)

    def test_a_stranger_that_ends_a_trial_at_the_same_moment_wins(self, ledger, worker, study, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        answers: list[Written] = []
        writer = threading.Thread(
            target=lambda: answers.append(ledger.write(endings=[end(lease, value=0.1)]))
        )
        with database.begin() as connection:
            connection.execute(text("UPDATE trials SET state = 'FAIL'"))
            writer.start()
            while database.scalar("SELECT count(*) FROM pg_locks WHERE NOT granted") == 0:
                assert writer.is_alive()
        writer.join()
        assert set(answers[0].refused) == {lease.token}
        assert (study.get_trials()[0].state, study.get_trials()[0].value) == (TrialState.FAIL, None)

    def test_an_expiry_does_not_wait_for_a_write_under_way(self, ledger, worker, study, database, experiment):
        ledger.claim(STUDY, worker, waiting=0, new=1)
        move_deadline(database, -3600)
        with database.begin() as connection:
            connection.execute(text("SELECT FROM shoal.attempts FOR NO KEY UPDATE"))
            assert ledger.expire(experiment.id) == []
        assert len(ledger.expire(experiment.id)) == 1

    def test_four_end_a_trial_at_once(self, ledger, worker, study, database_url):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        together = threading.Barrier(4)
        refused: list[int] = []

        def finish(value: float) -> None:
            with Database(database_url) as own:
                mine = BatchedLedger(own)
                together.wait()
                refused.append(len(mine.write(endings=[end(lease, value=value)]).refused))

        threads = [threading.Thread(target=finish, args=[index / 10]) for index in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(refused) == [0, 1, 1, 1]

    def test_pools_that_write_and_expire_at_once_never_deadlock(
        self, ledger, study, database_url, experiment
    ):
        workers = [ledger.register(f"w{index}") for index in range(3)]
        wrong: list[BaseException] = []

        def run(worker: int) -> None:
            try:
                with Database(database_url, patience=0) as own:  # a deadlock would be raised
                    mine = BatchedLedger(own)
                    for _ in range(6):
                        leases = mine.claim(STUDY, worker, waiting=8, new=8)
                        leases.reverse()
                        mine.write(epochs=[epoch_of(lease, 1) for lease in leases])
                        mine.expire(experiment.id, dead_workers=workers)
                        states = STATES * 8
                        mine.write(
                            endings=[end(one, state) for one, state in zip(leases, states, strict=False)]
                        )
            except BaseException as error:  # noqa: BLE001 (told by the test's own thread)
                wrong.append(error)

        threads = [threading.Thread(target=run, args=[worker]) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_time_zones_of_clients_play_no_part(self, study, database_url, monkeypatch, experiment, database):
        monkeypatch.setenv("PGTZ", "America/Los_Angeles")
        with Database(database_url) as west:
            ledger = BatchedLedger(west)
            worker = ledger.register("west")
            (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
            monkeypatch.setenv("PGTZ", "Asia/Tokyo")
            with Database(database_url) as east:
                assert BatchedLedger(east).expire(experiment.id) == []
            assert ledger.write(endings=[end(lease)]).refused == {}
        age = "SELECT abs(extract(epoch FROM timezone('UTC', now()) - datetime_complete)) < 600 FROM trials"
        assert database.scalar(age)

    def test_an_idle_server_side_zone_does_not_matter(self, ledger, worker, study, database, experiment):
        """Not even one that somebody sets for the whole database."""
        with database.own_connection() as connection:
            name = connection.scalar(text("SELECT current_database()"))
            connection.execute(text(f"ALTER DATABASE \"{name}\" SET timezone = 'Asia/Tokyo'"))
        with Database(database.url) as fresh:
            ledger = BatchedLedger(fresh)
            (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
            assert ledger.expire(experiment.id) == []
            assert ledger.write(endings=[end(lease)]).refused == {}

    # ---- failpoints ----

    @pytest.mark.parametrize(
        ("name", "stored"), [("ledger.write.before", False), ("ledger.write.committed", True)]
    )
    def test_failpoints_of_a_write(self, ledger, worker, study, monkeypatch, name, stored, database):
        (lease,) = ledger.claim(STUDY, worker, waiting=0, new=1)
        forget_visits()
        monkeypatch.setenv("SHOAL_FAILPOINTS", f"{name}:raise@1")
        with pytest.raises(FailpointError):
            ledger.write(endings=[end(lease)])
        (attempt,) = Attempts(database).of_trial(lease.trial_id)
        assert (attempt.state == "complete") == stored

    def test_failpoints_of_the_others(self, ledger, worker, study, monkeypatch, experiment):
        for name, call in {
            "ledger.claim.committed": lambda: ledger.claim(STUDY, worker, waiting=0, new=1),
            "ledger.expire.committed": lambda: ledger.expire(experiment.id),
            "ledger.retry.committed": lambda: ledger.retry_failed(experiment.id),
        }.items():
            monkeypatch.setenv("SHOAL_FAILPOINTS", f"{name}:raise")
            with pytest.raises(FailpointError, match=name):
                call()
        assert len(study.get_trials()) == 1


def upserting(message: str) -> str:
    """A write that looks for what may be there, made of one that doesn't."""
    for table, clause in {
        "trial_params": writes.OVER_PARAMS,
        "trial_intermediate_values": writes.OVER_REPORTS,
        "shoal.epochs": writes.OVER_POINTS,
    }.items():
        head, tail = message.split(f"INSERT INTO {table}\n" if "." in table else f"INSERT INTO {table} ", 1)
        said, rest = tail.split(";", 1)
        message = f"{head}INSERT INTO {table} {said} {clause};{rest}"
    return message


STATES = ["complete", "pruned", "failed", "released", "retry"]


def test_before_anybody_opened_optunas_storage(empty_database_url):
    from storage.database import open_database
    from storage.errors import StudyNotFound

    with open_database(empty_database_url) as database:
        ledger = BatchedLedger(database)
        assert ledger.expire(1) == []
        assert ledger.retry_failed(1) == []
        worker = ledger.register("w")
        ledger_study = "e/tpe/0"
        with pytest.raises(StudyNotFound):
            ledger.claim(ledger_study, worker, waiting=1, new=1)


def test_the_ledger_is_chosen_by_optunas_revision(database, optuna_storage):
    from storage.ledgers import ledger_of
    from storage.stock_ledger import StockLedger

    assert isinstance(ledger_of(database, optuna_storage), BatchedLedger)
    with database.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = 'v9.0.0.a'"))
    assert isinstance(ledger_of(database, optuna_storage), StockLedger)
    assert isinstance(optuna.create_study(storage=optuna_storage), optuna.Study)


def test_the_wire_counts(database_url):
    with wired(database_url) as wire, Database(wire.url) as database:
        assert isinstance(wire, Wire)
        database.script("SELECT 1; SELECT 2", {})
        wire.queries.clear()
        assert database.script("SELECT 1; SELECT 2", {})[0][0] == 2
        assert len(wire.queries) == 1
        wire.queries.clear()
        with database.begin() as connection:
            connection.execute(text("SELECT 1"))
        assert len(wire.queries) > 2
