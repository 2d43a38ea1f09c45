"""The feed: an epoch's order is the same whether it was made ahead or not; trials prepare one at a time."""

from __future__ import annotations

from objectives.fused.pool import Pool
from objectives.recording import Recording, RecordingError, Work
from tests.contracts.parity_contract import fused_pool, small_cnn, tiny


def refusing(work: Work) -> Recording:
    """A recorder that can record nothing: steps as on a GPU, operation by operation."""
    raise RecordingError("not here")


def pool_of(count: int, *, gpu: bool, epochs: int = 2, batch_size: int | None = 16) -> Pool:
    """Trials with ten steps an epoch, or one."""
    given = {"model": small_cnn(), "epochs": epochs, "batch_size": batch_size}
    starts = [tiny(number, "mse", "sgd", **given) for number in range(count)]
    return fused_pool(starts, recorder=refusing if gpu else None)


def prepared(pool: Pool) -> list[int | None]:
    """The epoch that each trial is prepared for."""
    return [one.feed._ahead and one.feed._ahead[0] for one in pool.members.values()]


def test_an_order_that_was_made_ahead_is_the_epochs_own() -> None:
    member = pool_of(1, gpu=False).members[0]
    orders = []
    for ahead in (None, 2, 3):
        if ahead is not None:
            member.feed.prepare(ahead)
        member.feed.start(2)
        orders.append(member.feed.order.tolist())
    member.feed.start(3)
    assert orders[0] == orders[1] == orders[2] != member.feed.order.tolist()


def test_one_trial_a_step_prepares_for_its_next_epoch() -> None:
    pool = pool_of(3, gpu=True)
    seen = []
    for _ in range(4):
        assert pool.step() == []
        seen.append(prepared(pool))
    assert seen == [[2, None, None], [2, 2, None], [2, 2, 2], [2, 2, 2]]


def test_nobody_prepares_for_an_epoch_that_will_not_be() -> None:
    pool = pool_of(2, gpu=True, epochs=1)
    for _ in range(3):
        pool.step()
    assert prepared(pool) == [None, None]


def test_a_cpu_that_trains_itself_has_no_time_to_look_ahead() -> None:
    pool = pool_of(2, gpu=False)
    for _ in range(3):
        pool.step()
    assert prepared(pool) == [None, None]


def test_trials_that_begin_with_every_step_do_not_pile_up() -> None:
    """Epochs of one step: there is never time to prepare for all."""
    pool = pool_of(3, gpu=True, epochs=9, batch_size=None)
    for _ in range(12):
        pool.step()
        assert pool._unprepared.keys().isdisjoint(pool._resting)


def test_trials_that_have_gone_need_no_preparation() -> None:
    pool = pool_of(4, gpu=True)
    pool.step()
    assert list(pool._unprepared) == [1, 2, 3]
    pool.retire(pool.members[2])
    assert list(pool._unprepared) == [1, 3]
    pool.rewind()
    assert not pool._unprepared
