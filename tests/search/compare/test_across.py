"""Several experiments together."""

from __future__ import annotations

from dataclasses import replace

import pytest

from search.compare.across import Across, across_table, compare_experiments, data_of
from search.compare.analysis import analyse
from search.compare.base import Comparison
from search.compare.statistics.across_datasets import critical_difference
from tests.contracts.comparison_values import drawn, retraining


def experiment(name: str, data: str | None = None, **settings: object) -> Comparison:
    """Three methods of which c is best, then b."""
    found = drawn(
        ["random", "b", "c"],
        replicates=2,
        trials=4,
        shift={"b": 0.2, "c": 0.4},
        **settings,  # type: ignore[arg-type]
    )
    return replace(found, experiment=name, spec={**found.spec, "data": {"name": data or name}})


def turned(found: Comparison) -> Comparison:
    """The same where smaller is better."""
    studies = tuple(
        replace(s, trials=tuple(replace(t, value=-(t.value or 0)) for t in s.trials)) for s in found.studies
    )
    return replace(found, direction="minimize", studies=studies)


def together(*found: Comparison) -> Across:
    return compare_experiments([(one, analyse(one, resamples=100)) for one in found])


def test_ranks_go_by_what_is_better_in_each_experiment() -> None:
    found = together(experiment("x"), turned(experiment("y")))
    assert found.methods == ("random", "b", "c")
    assert found.ranks is not None
    assert found.ranks.average_ranks == (3, 2, 1)
    assert found.blocks[1].scores["c"] < 0 < found.blocks[1].turned["c"]
    assert "c, 1.00" in found.text


@pytest.mark.parametrize(("experiments", "tested"), [(5, False), (6, True)])
def test_a_critical_difference_takes_six_experiments(experiments: int, tested: bool) -> None:
    found = together(*(experiment(f"e{n}") for n in range(experiments)))
    assert found.ranks is not None
    assert (found.ranks.critical_difference is not None) is tested
    assert ("Too few experiments" in found.text) is not tested
    if tested:
        assert found.ranks.critical_difference == pytest.approx(critical_difference(3, 6))
        assert "Friedman's test that all rank alike: p = 0.002. " in found.text
        assert "(ranks further apart than 1.35) tells apart c from random." in found.text


def test_methods_that_friedman_does_not_tell_apart_are_not_told_apart() -> None:
    shifts = ({"c": 0.2}, {"b": 0.2}, {"random": 0.2}) * 2
    found = []
    for place, shift in enumerate(shifts):
        one = drawn(["random", "b", "c"], replicates=2, trials=4, shift=shift)
        found.append(replace(one, experiment=f"e{place}", spec={**one.spec, "data": {"name": f"d{place}"}}))
    text = together(*found).text
    assert text.endswith(": no method is told apart from another.")
    assert "Nemenyi" not in text


def test_only_common_methods_are_ranked() -> None:
    other = experiment("y")
    other = replace(other, studies=tuple(s for s in other.studies if s.method != "b"))
    assert together(experiment("x"), other).methods == ("random", "c")
    alone = together(replace(experiment("x"), studies=experiment("x").studies[:2]), other)
    assert alone.ranks is None
    assert "nothing to rank" in alone.text


def test_regrets_are_means_over_experiments() -> None:
    found = together(experiment("x"), experiment("y"))
    assert set(found.regrets) == {"random", "b", "c"}
    assert found.regrets["c"] < found.regrets["b"] < found.regrets["random"] <= 1
    assert found.regrets["b"] == pytest.approx(sum(b.regrets["b"] for b in found.blocks) / 2)


def test_experiments_on_the_same_data_are_named() -> None:
    found = together(experiment("x", "digits"), experiment("y", "digits"), experiment("z", "mnist"))
    assert found.repeated == ("digits",)
    assert "not independent" in found.text


def test_no_test_is_made_where_experiments_share_their_data() -> None:
    found = together(*(experiment(f"e{n}", "digits" if n > 4 else None) for n in range(7)))
    assert found.ranks is not None
    assert found.ranks.average_ranks == (3, 2, 1)
    assert (found.ranks.critical_difference, found.ranks.friedman_p, found.ranks.groups) == (None, None, ())
    assert "Nemenyi" not in found.text


def test_data_are_told_apart_by_what_they_hold() -> None:
    def of(**spec: object) -> str:
        return data_of(replace(experiment("x"), spec=spec))

    assert of(data={"name": "mnist", "root": "/a"}) == of(data={"name": "mnist", "root": "/b", "limit": 5})
    folders = [of(data={"name": "image_folder", "root": root}) for root in ("/a", "/b")]
    assert folders[0] != folders[1]
    function = {"function": "m:f", "direction": "minimize"}
    assert of(data=None, objective=function) == "m:f"
    problems = [of(objective=function, fixed={"epochs": 3, "table": n}) for n in (1, 2)]
    assert problems[0] == of(objective=function, fixed={"epochs": 9, "table": 1}) != problems[1]


def test_only_named_methods_are_ranked() -> None:
    both = [(one, analyse(one, resamples=100)) for one in (experiment("x"), experiment("y"))]
    found = compare_experiments(both, methods=["c", "random"])
    assert found.methods == ("random", "c")
    assert found.ranks is not None
    assert found.ranks.average_ranks == (2, 1)


def test_retrained_scores_are_compared_if_all_experiments_have_them() -> None:
    def with_test_scores(name: str) -> Comparison:
        found = experiment(name, retrain={"seeds": 1})
        readings = []
        for one in found.studies:
            best = max(one.trials, key=lambda t: t.value or 0)
            readings += retraining(one, best.number, [0.1 if one.method == "c" else 0.5])
        return replace(found, readings=tuple(readings))

    both = together(with_test_scores("x"), with_test_scores("y"))
    assert (both.outcome, both.blocks[0].scores["c"]) == ("retrained", pytest.approx(0.1))
    mixed = together(with_test_scores("x"), experiment("y"))
    assert mixed.outcome == "searched"
    assert mixed.blocks[0].scores["c"] > 1


def test_the_table_has_a_row_per_method() -> None:
    table = across_table(together(experiment("x"), experiment("y")))
    assert [row[0].text for row in table.rows] == ["random", "b", "c"]
    assert [row[1].value for row in table.rows] == [3, 2, 1]
    assert [column.key for column in table.columns] == ["method", "rank", "regret", "score.x", "score.y"]


def test_experiments_are_named_once() -> None:
    with pytest.raises(ValueError, match="named once"):
        together(experiment("x"), experiment("x"))
    with pytest.raises(ValueError, match="One or more"):
        compare_experiments([])


def test_functions_have_no_images_in_words() -> None:
    def words(*found: Comparison) -> str:
        return across_table(together(*found)).caption

    def function(name: str) -> Comparison:
        one = experiment(name)
        return replace(one, spec={**one.spec, "objective": {"function": f"mine:{name}"}, "data": None})

    assert "validation, in the search" in words(experiment("x"), experiment("y"))
    for found in ((function("x"), function("y")), (function("x"), experiment("y"))):
        assert "best in the search" in words(*found)
        assert "validation" not in words(*found)
