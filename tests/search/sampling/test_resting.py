"""What samplers see of trials that rest at a rung."""

from __future__ import annotations

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.sampling.resting import Resting
from search.sampling.tpe import FastTpeSampler, Observations

X = FloatDistribution(0.0, 1.0)


def rests(trial: FrozenTrial) -> bool:
    """As where there is a rung after every other epoch."""
    return trial.state == TrialState.WAITING and (trial.last_step or 0) % 2 == 1


def study_of(states: dict[TrialState, int], *, value_of: dict[int, float]) -> optuna.Study:
    """A study with so many trials in each state, all at epoch 1."""
    study = optuna.create_study(direction="maximize")
    for number, state in enumerate(state for state, count in states.items() for _ in range(count)):
        x = number / sum(states.values())
        value = value_of.get(number, x)
        finished = state.is_finished()
        study.add_trial(
            create_trial(
                state=state,
                params={"x": x},
                distributions={"x": X},
                intermediate_values={1: value},
                value=value if finished else None,
            )
        )
    return study


def test_what_rests_is_shown_as_pruned_where_it_rests() -> None:
    study = study_of({TrialState.WAITING: 2, TrialState.COMPLETE: 1}, value_of={0: 0.25})
    shown = Resting(rests).of(study)
    assert [trial.state.name for trial in shown.get_trials()] == ["PRUNED", "PRUNED", "COMPLETE"]
    assert [trial.number for trial in shown.get_trials(states=(TrialState.PRUNED,))] == [0, 1]
    assert shown.get_trials(states=(TrialState.WAITING,)) == []
    assert shown.get_trials()[0].value == 0.25
    states = [trial.state.name for trial in study.get_trials()]
    assert states == ["WAITING", "WAITING", "COMPLETE"], "nothing is changed"


def test_what_still_rests_is_the_same_object_and_what_went_on_is_not() -> None:
    study = study_of({TrialState.WAITING: 1}, value_of={})
    resting = Resting(rests)
    (first,) = resting.of(study).get_trials(deepcopy=False)
    (again,) = resting.of(study).get_trials(deepcopy=False)
    assert again is first
    trial_id = study.trials[0]._trial_id
    study._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
    (running,) = resting.of(study).get_trials(deepcopy=False)
    assert running.state == TrialState.RUNNING
    for epoch, value in ((2, 0.5), (3, 0.75)):
        study._storage.set_trial_intermediate_value(trial_id, epoch, value)
    study._storage.set_trial_state_values(trial_id, TrialState.WAITING)
    (further,) = resting.of(study).get_trials(deepcopy=False)
    assert (further.state, further.value, further.last_step) == (TrialState.PRUNED, 0.75, 3)


def test_tpe_learns_from_what_rests_as_from_what_was_pruned() -> None:
    """The same suggestions from a study whose trials rest, and from one whose trials were pruned there."""
    values = {number: -abs(number / 30 - 0.7) for number in range(30)}

    def suggested(study: optuna.Study) -> float:
        sampler = FastTpeSampler(Observations(), seed=1, n_startup_trials=10)
        study.sampler = sampler
        trial = study.get_trials(deepcopy=False)[0]
        return float(sampler.sample_independent(study, trial, "x", X))

    resting = study_of({TrialState.WAITING: 30}, value_of=values)
    pruned = study_of({TrialState.PRUNED: 30}, value_of=values)
    assert suggested(Resting(rests).of(resting)) == suggested(pruned)
    assert suggested(resting) != suggested(pruned), "Optuna alone learns nothing from what waits"
