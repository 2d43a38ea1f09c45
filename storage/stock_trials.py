"""What the stock ledger asks of an Optuna storage, by its public interface; its errors as ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from storage.errors import DatabaseUnreachable
from storage.ledger_statements import SEED_KEY
from storage.values import storable
from storage.write_rows import stored_parameter

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

    from storage.ledger import Draw, Ending, EpochWrite

NOT_COPIED = ("reason", "epochs", "diverged", "diverged_epoch", "shoal:retry_of", SEED_KEY)
"""User attributes that tell how a trial went, not what it is."""


class StockTrials:
    """The trials of an Optuna storage. Each call is a transaction of its own, or several."""

    def __init__(self, storage: BaseStorage) -> None:
        self.storage = storage

    def ask(self, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        """What a method of the storage answers. Raises `DatabaseUnreachable` where it lost its database."""
        from optuna.exceptions import StorageInternalError

        try:
            return call(*arguments, **named)
        except StorageInternalError as error:
            message = f"Optuna's storage could not be used: {str(error).splitlines()[0]}"
        raise DatabaseUnreachable(message, retryable=True)

    def study(self, name: str) -> int | None:
        """The id of a study; None if there is none."""
        try:
            return int(self.ask(self.storage.get_study_id_from_name, name))
        except KeyError:
            return None

    def all(self, study_id: int, states: tuple[TrialState, ...] | None = None) -> list[FrozenTrial]:
        """The trials of a study; not to be changed."""
        found: list[FrozenTrial] = self.ask(
            self.storage.get_all_trials, study_id, deepcopy=False, states=states
        )
        return found

    def get(self, trial_id: int) -> FrozenTrial | None:
        """A trial; None if it was deleted."""
        try:
            found: FrozenTrial = self.ask(self.storage.get_trial, trial_id)
        except KeyError:
            return None
        return found

    def make(self, study_id: int, template: FrozenTrial) -> int:
        """Make a trial; its id."""
        return int(self.ask(self.storage.create_new_trial, study_id, template))

    def set_state(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        """Change a trial's state; False if somebody else was quicker."""
        from optuna.exceptions import UpdateFinishedTrialError

        try:
            return bool(self.ask(self.storage.set_trial_state_values, trial_id, state, values=values))
        except (UpdateFinishedTrialError, KeyError):
            return False

    def draw(self, draw: Draw) -> None:
        """Store the values of a trial; those that it has stay."""
        trial_id = draw.lease.trial_id
        known = self.get(trial_id)
        if known is None or known.state.is_finished():
            return
        for name, distribution in draw.distributions.items():
            if name not in known.params:
                value = stored_parameter(draw, name)
                self.ask(self.storage.set_trial_param, trial_id, name, value, distribution)
        self.note(draw)

    def note(self, said: Draw | Ending) -> None:
        """Set user attributes; those of a trial that has ended stay."""
        from optuna.exceptions import UpdateFinishedTrialError

        with suppress(UpdateFinishedTrialError, KeyError):
            for key, value in said.attributes.items():
                self.ask(self.storage.set_trial_user_attr, said.lease.trial_id, key, value)

    def report(self, write: EpochWrite) -> None:
        """Store an epoch's value; one of a trial that has ended stays as it is."""
        from optuna.exceptions import UpdateFinishedTrialError

        with suppress(UpdateFinishedTrialError, KeyError):
            self.ask(
                self.storage.set_trial_intermediate_value,
                write.lease.trial_id,
                int(write.report.epoch),
                float(write.value),
            )

    def prune(self, trial_id: int) -> None:
        """End a trial as pruned, with its last report as its value."""
        from optuna.trial import TrialState

        trial = self.get(trial_id)
        if trial is not None:
            last = trial.last_step
            value = None if last is None else [trial.intermediate_values[last]]
            self.set_state(trial_id, TrialState.PRUNED, value)

    def fail(self, trial_id: int, reason: str) -> None:
        """End a trial as failed, with its reason as a user attribute."""
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        with suppress(UpdateFinishedTrialError, KeyError):
            self.ask(self.storage.set_trial_user_attr, trial_id, "reason", storable(reason))
        self.set_state(trial_id, TrialState.FAIL)

    def put_back(self, trial_id: int) -> None:
        """Let a running trial wait again."""
        from optuna.trial import TrialState

        trial = self.get(trial_id)
        if trial is not None and trial.state == TrialState.RUNNING:
            if trial.user_attrs.get(SEED_KEY) is not None:
                # Optuna's interface can't take an attribute away.
                self.ask(self.storage.set_trial_user_attr, trial_id, SEED_KEY, None)
            self.set_state(trial_id, TrialState.WAITING)


def repetition(trial: FrozenTrial) -> FrozenTrial:
    """A waiting trial with the values of a failed one; names it as Optuna's own callback does."""
    from optuna.trial import TrialState, create_trial

    system = {
        key: value for key, value in trial.system_attrs.items() if not key.startswith("completed_rung_")
    }
    history = [*system.get("retry_history", []), trial.number]
    user = {key: value for key, value in trial.user_attrs.items() if key not in NOT_COPIED}
    return create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=user | {"shoal:retry_of": trial.number},
        system_attrs={"failed_trial": trial.number} | system | {"retry_history": history},
    )
