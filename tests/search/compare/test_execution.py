"""How the trials were run, as the protocol tells it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.analysis import analyse
from search.compare.base import Comparison, Execution, Way, WorkerSeen
from search.compare.execution import UNKNOWN, architecture, most_in_flight
from search.compare.protocol import protocol
from search.compare.render import render_markdown
from tests.contracts.comparison_values import comparison, drawn, study, trial

CNN = '["cnn", [["depth", 2], ["width", 8]], [1, 28, 28], 10]'


def ran(**execution: object) -> Comparison:
    return replace(drawn(replicates=2, trials=2), execution=Execution(**execution))  # type: ignore[arg-type]


def said(found: Comparison) -> dict[str, str]:
    return {entry.name: entry.text for entry in protocol(found).entries if entry.section == "execution"}


def test_it_tells_trainer_choices_devices_workers_and_slots() -> None:
    workers = [
        WorkerSeen(host="a", trainer="fused", device="GPU X", slots=16, most_held=20),
        WorkerSeen(host="a", trainer="fused", device="GPU X", slots=16, most_held=7),
        WorkerSeen(host="b", trainer="fused", device="GPU Y", slots=8, most_held=9),
    ]
    ways = [
        Way(
            program=CNN,
            batch=128,
            device="GPU X",
            fused=False,
            reason="slower",
            fused_rate=1e3,
            alone_rate=2e3,
        ),
        Way(program=CNN, batch=32, device="GPU X", fused=True, fused_rate=9e3, alone_rate=4e3, slots=12),
    ]
    told = said(ran(workers=tuple(workers), ways=tuple(ways)))
    assert told["trainer"].startswith("fused: ")
    assert told["chosen way"] == (
        "cnn (depth 2, width 8) on GPU X: "
        "batches up to 32: fused, at 9,000 images a second fused and 4,000 one by one, memory for 12 slots; "
        "batches up to 128: one by one (slower), at 1,000 images a second fused and 2,000 one by one"
    )
    assert told["devices"] == "2 × GPU X, GPU Y"
    assert told["workers"].startswith("2 on a, 1 on b")
    assert (
        told["slots"] == "8 to 16 per worker; a worker held 20 trials at most, those claimed ahead among them"
    )


def test_the_whole_protocol_is_in_the_report() -> None:
    found = ran(workers=(WorkerSeen(host="a", trainer="plain", slots=1, most_held=2),))
    text = render_markdown(found, analyse(found, resamples=100))
    for words in ("plain: one trial after the other", "1 on a", "1 per worker", "shared trials"):
        assert words in text


def test_what_older_experiments_did_not_record_is_said_to_be_unknown() -> None:
    told = said(ran())
    assert {told[name] for name in ("trainer", "devices", "workers", "slots")} == {UNKNOWN}
    way = Way(program=CNN, batch=32, device="CPU", fused=True)
    older = said(ran(workers=(WorkerSeen(host="a", most_held=3),), ways=(way,)))
    assert older["trainer"].startswith("fused")
    assert older["devices"] == "CPU"
    assert older["slots"].startswith("a worker held 3")


def test_a_function_is_trained_by_nothing() -> None:
    spec = {"objective": {"function": "mine:f"}, "data": None, "model": None}
    found = comparison([study("tpe", 0, [trial(0, 0.5)])], spec=spec)
    assert said(found)["trainer"] == "none: trials call the objective"


@pytest.mark.parametrize(("held", "told"), [(1, True), (4, True), (5, False)])
def test_trials_in_flight_are_those_in_fact(held: int, told: bool) -> None:
    """Whatever the file allowed: an unlimited study that never held more than four was not wide."""
    held_by = {"digits/tpe/0": 1, "digits/tpe/1": held, "digits/tpe/1/retrained": 99, "digits/random/0": 30}
    found = ran(most_held=held_by)
    found = replace(found, spec={**found.spec, "methods": {"tpe": {"in_flight": None}, "random": {}}})
    assert (most_in_flight(found, "tpe"), most_in_flight(found, "random")) == (held, 30)
    methods = {e.name: e.text for e in protocol(found).entries if e.section == "methods"}
    assert methods["tpe"] == f"any number of trials of a study at once (in fact {held} at most)"
    not_shown = analyse(found, resamples=100).conclusion.not_shown
    assert (not any("side by side" in sentence for sentence in not_shown)) is told


def test_shared_trials_are_counted_by_method() -> None:
    assert said(drawn(replicates=1, trials=1))["shared trials"].startswith("none")
    first = [trial(0, 0.5, shared_with="digits/tpe/0"), trial(1, 0.6)]
    second = [trial(0, 0.5, shared_with="digits/random/0"), trial(1, 0.6, shared_with="x")]
    told = said(comparison([study("random", 0, first), study("tpe", 0, second)]))["shared trials"]
    assert "counted for each: 1 of random, 2 of tpe" in told


@pytest.mark.parametrize("program", ["", "nonsense", "[]", '["cnn"]', "{}", '["cnn", 3]'])
def test_a_program_of_another_kind_is_shown_as_it_is(program: str) -> None:
    assert architecture(program) == program
