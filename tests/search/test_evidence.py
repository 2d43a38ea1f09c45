"""What a comparison takes: one number each, in the same words before and after an experiment."""

from __future__ import annotations

import pytest

from search.compare.analysis import analyse
from search.evidence import REPLICATES_FOR_A_CLAIM, TRIALS_FOR_A_COMPARISON, few_replicates, few_trials
from tests.contracts.comparison_values import comparison, study, trial


def test_the_numbers() -> None:
    assert (REPLICATES_FOR_A_CLAIM, TRIALS_FOR_A_COMPARISON) == (10, 50)


@pytest.mark.parametrize(("words", "enough"), [(few_replicates, 10), (few_trials, 50)])
def test_nothing_is_said_of_enough(words, enough: int) -> None:
    assert words(enough) == words(enough + 1) == ""
    assert str(enough - 1) in words(enough - 1)
    assert str(enough) in words(enough - 1)


def test_one_trial_is_one_trial() -> None:
    assert "1 trial per study," in few_trials(1)
    assert "2 trials per study," in few_trials(2)


def test_the_report_says_it_in_these_words() -> None:
    found = comparison([study("random", r, [trial(n, 0.5) for n in range(4)]) for r in range(3)])
    texts = {note.kind: note.text for note in analyse(found).notes}
    for kind, said in (("too_few_replicates", few_replicates(3)), ("demonstration", few_trials(4))):
        assert texts[kind] == f"{said[0].upper()}{said[1:]}."
