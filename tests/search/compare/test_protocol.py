"""The protocol with its actual values."""

from __future__ import annotations

import pytest

from search.compare.protocol import in_line, protocol
from search.experiment.spec import ExperimentSpec
from tests.contracts.comparison_values import comparison, drawn, lifelike, study, trial


def texts(found: object) -> dict[tuple[str, str], str]:
    return {(entry.section, entry.name): entry.text for entry in found.entries}  # type: ignore[attr-defined]


def test_the_protocol_says_what_was_declared() -> None:
    found = protocol(
        drawn(
            pairs=[["tpe", "random"]],
            axis="seconds",
            alpha=0.01,
            smallest_difference=0.02,
            retrain={"seeds": 3},
        )
    )
    said = texts(found)
    assert said["declared", "pairs"] == "tpe – random"
    assert said["declared", "axis"] == found.declared_axis == "seconds"
    assert said["declared", "alpha"].startswith("0.01,")
    assert said["declared", "smallest difference"] == "0.02 in accuracy"
    assert "3 fresh seeds" in said["declared", "retraining"]
    assert found.settings.retrain.seeds == 3


def test_undeclared_things_are_said_to_be_defaults() -> None:
    said = texts(protocol(lifelike()))
    assert said["declared", "pairs"].endswith("(all: the file names none)")
    assert said["declared", "axis"] == "epochs"


def test_the_protocol_says_how_it_was_run() -> None:
    said = texts(protocol(lifelike()))
    assert said["design", "budget per study"] == "20 trials; epochs: no limit; seconds: no limit"
    assert said["design", "pruner"] == "asha; rungs: 1, 3; the same for all methods"
    assert said["design", "replicates"] == "5"
    assert "larger is better" in said["design", "metric"]
    assert said["methods", "tpe"] == "2 trials of a study at once; n_startup_trials: 10"
    assert said["methods", "random"] == "any number of trials of a study at once"
    assert said["environment", "versions"] == "python: 3.11.2; torch: 2.13.0; optuna: 5.0.0"
    assert said["environment", "revision"] == "0123abc"


@pytest.mark.parametrize(
    ("levels", "words"),
    [
        ("offset", "random offset"),
        ("centred", "middles"),
        ("ends", "from one end"),
        (None, "as the file names"),
    ],
)
def test_the_protocol_says_where_the_grids_levels_sit(levels: str | None, words: str) -> None:
    settings: dict[str, object] = {} if levels is None else {"levels": levels}
    found = comparison([study("grid", 0, [trial(0, 0.5)])], spec={"methods": {"grid": settings}})
    assert words in texts(protocol(found))["methods", "grid"]


def test_the_space_has_the_levels_that_grids_took() -> None:
    def grid(replicate: int, rates: list[float]) -> object:
        return study(
            "grid", replicate, [trial(n, 0.5, params={"learning_rate": r}) for n, r in enumerate(rates)]
        )

    same = comparison([grid(0, [0.1, 0.01]), grid(1, [0.01, 0.1])])  # type: ignore[list-item]
    entries = {(e.section, e.name): e.text for e in protocol(same).space}
    assert entries["learning_rate", "grid"] == "0.01, 0.1"
    assert entries["learning_rate", "space"] == "low: 0.0001; high: 1; log: true"
    assert ("loss", "grid") not in entries
    other = comparison([grid(0, [0.1, 0.01]), grid(1, [0.02, 0.2])])  # type: ignore[list-item]
    entries = {(e.section, e.name): e.text for e in protocol(other).space}
    assert entries["learning_rate", "grid"] == "0.01, 0.1; other levels in other replicates"
    many = comparison([grid(0, [n / 100 for n in range(20)])])  # type: ignore[list-item]
    assert protocol(many).space[1].text.endswith(", 0.07, … 20 in all")


def test_a_stored_file_has_its_protocol() -> None:
    spec = ExperimentSpec.model_validate(
        {
            "experiment": "x",
            "data": "digits",
            "space": {"learning_rate": {"low": 0.001, "high": 1.0, "log": True}},
            "comparison": {"pairs": [["tpe", "random"]]},
        }
    )
    found = protocol(comparison([study("tpe", 0, [])], spec=spec.to_json()))
    assert found.settings == spec.comparison
    assert found.pairs == ()
    assert found.pruner == "none"


def test_an_objective_of_ones_own_has_no_images() -> None:
    spec = {"objective": {"function": "mine:f", "direction": "minimize"}, "data": None, "model": None}
    said = texts(protocol(comparison([study("tpe", 0, [])], metric="value", spec=spec)))
    assert said["design", "objective"] == "function: mine:f; direction: minimize"
    assert ("design", "split") not in said
    assert said["design", "metric"] == "value, larger is better"
    assert said["declared", "retraining"] == (
        "each study's winner with 10 fresh seeds; it counts with 5 of them or more"
    )


def test_one_trial_at_once_is_one_trial() -> None:
    said = texts(protocol(comparison([study("tpe", 0, [])], spec={"methods": {"tpe": {"in_flight": 1}}})))
    assert said["methods", "tpe"] == "1 trial of a study at once"


def test_nested_settings_in_one_line() -> None:
    section = {"name": "asha", "a": {"b": 1, "c": {"d": True}}, "e": [1, 0.5], "f": None, "g": {}, "h": []}
    assert in_line(section) == "asha; a.b: 1; a.c.d: true; e: 1, 0.5; h: –"
    assert in_line({}) == ""
