"""Studies that samplers see otherwise than they are stored, one told of another as well."""

from __future__ import annotations

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from search.experiment.growth import Widening
from search.sampling.resting import Resting
from search.sampling.shown import Shown

OLD, NEW = CategoricalDistribution(("a", "b")), CategoricalDistribution(("a", "b", "c"))


def rests(trial: FrozenTrial) -> bool:
    """What waits and has been trained."""
    return trial.state == TrialState.WAITING and trial.last_step is not None


def study() -> optuna.Study:
    """Of a dimension that grew: a trial from before it did and one from after rest, and one is complete."""
    made = optuna.create_study(study_name="s", direction="maximize")
    for kind, state in (
        (OLD, TrialState.WAITING), (NEW, TrialState.WAITING), (OLD, TrialState.COMPLETE)
    ):  # fmt: skip
        value = 0.5 if state == TrialState.COMPLETE else None
        made.add_trial(
            create_trial(
                state=state,
                value=value,
                params={"x": "b"},
                distributions={"x": kind},
                intermediate_values={1: 0.25},
            )
        )
    return made


def test_what_rests_does_so_in_todays_space_as_well() -> None:
    seen = Widening({"x": NEW}).of(Resting(rests).of(study()))
    told = [(trial.state.name, trial.distributions["x"]) for trial in seen.get_trials()]
    assert told == [("PRUNED", NEW), ("PRUNED", NEW), ("COMPLETE", NEW)]
    learned = seen.get_trials(deepcopy=False, states=(TrialState.PRUNED, TrialState.COMPLETE))
    assert [trial.number for trial in learned] == [0, 1, 2]
    assert seen.get_trials(states=(TrialState.WAITING,)) == []


def test_all_else_is_the_studys_and_copies_are_the_callers() -> None:
    told = study()
    seen = Shown(told, lambda trials: trials[:2])
    assert (seen.study_name, seen.direction, seen._study_id) == ("s", told.direction, told._study_id)
    first, again = seen.get_trials(), seen.get_trials(deepcopy=False)
    first[0].params["x"] = "a"
    first[0].set_user_attr("mine", 1)
    assert [trial.params for trial in seen.get_trials(deepcopy=False)] == [{"x": "b"}] * 2
    assert "mine" not in again[0].user_attrs
    assert [trial.number for trial in told.get_trials()] == [0, 1, 2]
    assert seen.best_value == 0.5, "asked of the study itself"
