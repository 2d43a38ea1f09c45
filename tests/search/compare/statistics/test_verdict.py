"""Verdicts and their words, on values planted to deserve them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from search.compare.base import Direction
from search.compare.statistics.base import Interval, Sample
from search.compare.statistics.hypothesis_tests import holm, signed_rank
from search.compare.statistics.verdict import PairResult, Rules, compare_pairs, label_of
from search.compare.statistics.wording import paragraph, signed

RULES = Rules(
    direction="maximize", smallest_difference=0.005, resamples=999, scale=100, unit="points", seed=1
)
NOISE = np.random.default_rng(7).normal(0, 1, (8, 100))


def sample(method: str, values: np.ndarray) -> Sample:
    return Sample(method, dict(enumerate(values.tolist())))


def compared(differences: np.ndarray, rules: Rules = RULES, *, paired: bool = True) -> PairResult:
    """tpe and random, tpe ahead by these differences in a metric that varies between replicates."""
    base = 0.9 + 0.02 * NOISE[7, : len(differences)]
    samples = [sample("tpe", base + differences), sample("random", base)]
    return compare_pairs(samples, [("tpe", "random")], rules, paired=paired)[0]


def standardised(n: int) -> np.ndarray:
    """Noise with mean 0 and standard deviation 1 exactly."""
    noise = NOISE[0, :n]
    return (noise - noise.mean()) / noise.std()


@pytest.mark.parametrize(
    ("value", "low", "high", "scale", "text"),
    [
        (0.0029, -0.00868, 0.0127, 100, "+0.3"),
        (0.0029, 0.0021, 0.0037, 100, "+0.29"),
        (-0.00001, -0.00868, 0.0127, 100, "+0.0"),
        (123.456, -400.0, 700.0, 1, "+123"),
        (2e-9, 1e-9, 3e-9, 1, "+0.000000"),
        (0.0123456, 0.0123456, 0.0123456, 100, "+1.23"),
        (0.0123456, None, None, 100, "+1.23"),
    ],
)
def test_differences_have_the_digits_that_their_interval_can_bear(
    value: float, low: float | None, high: float | None, scale: float, text: str
) -> None:
    assert signed(value, Interval(value, low, high, 0.95, "bca"), scale) == text


def test_a_large_difference_is_meaningful() -> None:
    result = compared(0.02 + 0.01 * standardised(30))
    assert (result.verdict, result.better, result.label) == ("meaningful", "tpe", "meaningful")
    text = paragraph(result, RULES)
    assert text.startswith("tpe is better than random at this budget, and the difference is meaningful: ")
    assert (
        "over 30 replicates, tpe's advantage over random is +2.00 points on average (95 % interval +" in text
    )
    assert "Wilcoxon's signed-rank test gives p < 0.001." in text
    assert "All of the difference's interval is beyond the smallest that matters, 0.5 points." in text


def test_the_same_against_the_first_method_is_told_from_the_winners_side() -> None:
    result = compared(-0.02 - 0.01 * standardised(30))
    assert (result.verdict, result.better) == ("meaningful", "random")
    assert result.difference is not None
    assert result.difference.estimate == pytest.approx(-0.02)
    text = paragraph(result, RULES)
    assert text.startswith("random is better than tpe")
    assert "random's advantage over tpe is +2.00 points on average (95 % interval +" in text
    assert result.superiority is not None
    share = 1 - result.superiority.estimate
    assert share > 0.9
    assert f"random is the better one in the same replicate with probability {share:.2f}" in text


def test_winning_a_little_more_often_is_real_but_not_meaningful() -> None:
    """64 of 100 won, by as much as the others are lost: P = 0.64, and its interval ends below 0.75."""
    signs = np.where(np.arange(100) < 64, 1.0, -1.0)
    result = compared(0.02 * signs * (1 + np.arange(100) % 7 / 100))
    assert (result.verdict, result.label) == ("not_meaningful", "not_meaningful")
    assert "but not often enough to be meaningful" in paragraph(result, RULES)


def test_a_sure_difference_that_does_not_matter_is_negligible() -> None:
    result = compared(0.001 + 0.0002 * standardised(30))
    assert (result.verdict, result.better, result.found) == ("negligible", "tpe", True)
    assert "but by less than matters" in paragraph(result, RULES)


def test_a_difference_in_sizes_that_wins_do_not_show_is_weak() -> None:
    """16 small losses and 14 large wins: large ranks on one side, most wins on the other."""
    result = compared(
        np.array([-0.001 - 0.00001 * i for i in range(16)] + [0.05 + 0.001 * i for i in range(14)])
    )
    assert result.superiority is not None
    assert result.superiority.estimate < 0.5
    assert (result.verdict, result.better) == ("weak", "tpe")
    assert paragraph(result, RULES).startswith(
        "A weak finding: tpe is better than random at this budget by the test"
    )


def test_a_mean_that_points_the_other_way_makes_it_weak() -> None:
    """29 wins of about a point, and one loss of ninety: A wins nearly always, and loses on average."""
    result = compared(np.array([0.01 + 0.0001 * i for i in range(29)] + [-0.9]))
    assert result.difference is not None
    assert result.difference.estimate < 0
    assert (result.verdict, result.better, result.label) == ("weak", "tpe", "meaningful")


def test_a_p_value_that_does_not_survive_holm_claims_nothing() -> None:
    """The same values are a finding as the only pair (p = 0.028) and none among three (p = 0.083)."""
    samples = [sample("a", 0.5 + 0.4 * np.ones(30) + standardised(30)), sample("b", np.full(30, 0.5))]
    samples += [sample(name, NOISE[i, :30]) for i, name in enumerate(("c", "d", "e"), start=3)]
    alone = compare_pairs(samples, [("a", "b")], RULES)[0]
    among = compare_pairs(samples, [("a", "b"), ("c", "d"), ("d", "e")], RULES)[0]
    assert alone.test == among.test
    assert (alone.found, among.verdict) == (True, "no_difference")
    assert (alone.holm_p, among.holm_p) == (pytest.approx(0.0277, abs=1e-4), pytest.approx(0.0832, abs=1e-4))


def test_close_methods_are_equivalent_only_if_the_interval_says_so() -> None:
    near = compared(0.002 * standardised(30))
    assert (near.verdict, near.better, near.found) == ("equivalent", None, False)
    assert paragraph(near, RULES).startswith(
        "tpe and random are equivalent within ± 0.5 points at this budget"
    )
    far = compared(0.05 * standardised(30))
    assert far.verdict == "no_difference"
    text = paragraph(far, RULES)
    assert text.startswith("No difference found between tpe and random at this budget: over 30 replicates, ")
    assert "That isn't evidence that they are equal" in text
    assert text.endswith("So many replicates find a P of 0.71 or more with power 0.8.")


@pytest.mark.parametrize("replicates", [2, 5, 9])
def test_too_few_replicates_get_no_p_value_however_clear(replicates: int) -> None:
    result = compared(0.2 + 0.001 * standardised(replicates))
    assert (result.verdict, result.test, result.check, result.holm_p, result.label, result.better) == (
        "too_few", None, None, None, None, None,
    )  # fmt: skip
    text = paragraph(result, RULES)
    assert text.startswith(
        f"Too few replicates for a claim about tpe and random: {replicates} replicates, and 10"
    )
    assert text.endswith("No p-value is given.")
    assert "p =" not in text


def test_one_replicate_is_told_as_one_number() -> None:
    result = compared(np.array([0.013]))
    assert paragraph(result, RULES) == (
        "Too few replicates for a claim about tpe and random: 1 replicate, and 10 are needed. "
        "Seen, without a claim: tpe's advantage over random is +1.3 points. No p-value is given."
    )


def test_no_replicate_in_common() -> None:
    result = compare_pairs([Sample("a", {0: 1.0}), Sample("b", {1: 1.0})], [("a", "b")], RULES)[0]
    assert (result.replicates, result.difference, result.verdict) == (0, None, "too_few")
    assert paragraph(result, RULES) == "a and b have no replicate in common: nothing can be said of them."


def test_methods_that_give_the_same_values_are_equivalent() -> None:
    result = compared(np.zeros(12))
    assert result.verdict == "equivalent"
    assert result.difference == Interval(0.0, 0.0, 0.0, 0.95, "constant")
    assert result.superiority == Interval(0.5, 0.5, 0.5, 0.95, "constant")
    assert result.holm_p == 1.0


def test_a_constant_difference_is_found() -> None:
    result = compared(np.full(12, 0.03))
    assert (result.verdict, result.better) == ("meaningful", "tpe")


@pytest.mark.parametrize("paired", [True, False])
def test_smaller_is_better_mirrors_larger_is_better(paired: bool) -> None:
    differences = 0.02 + 0.01 * standardised(30)

    def result(direction: Direction, sign: int) -> PairResult:
        rules = Rules(direction=direction, smallest_difference=0.005, resamples=999)
        base = 0.9 + 0.001 * NOISE[7, :30]
        samples = [sample("a", sign * (base + differences)), sample("b", sign * base)]
        return compare_pairs(samples, [("a", "b")], rules, paired=paired)[0]

    assert result("minimize", -1) == result("maximize", 1)
    assert result("minimize", 1).better == "b"


def test_only_replicates_that_both_have_are_paired() -> None:
    a = Sample("a", {r: 0.9 + 0.001 * r for r in range(12)})
    b = Sample("b", {r: 0.8 + 0.001 * r for r in range(3, 20)})
    assert compare_pairs([a, b], [("a", "b")], RULES)[0].replicates == 9
    apart = compare_pairs([a, b], [("a", "b")], RULES, paired=False)[0]
    assert (apart.replicates, apart.verdict, apart.paired) == (12, "meaningful", False)
    assert apart.test is not None
    assert apart.test.test == "Mann–Whitney"
    assert "in two independent runs" in paragraph(apart, RULES)
    assert "Mann–Whitney's test" in paragraph(apart, RULES)


@pytest.mark.parametrize("methods", range(2, 9))
def test_holm_is_taken_over_all_declared_pairs(methods: int) -> None:
    names = [f"m{i}" for i in range(methods)]
    samples = [sample(name, NOISE[i, :20] + 0.3 * i) for i, name in enumerate(names)]
    pairs = list(itertools.combinations(names, 2))
    results = compare_pairs(samples, pairs, RULES)
    p = [signed_rank(x.array, y.array).p_value for x, y in itertools.combinations(samples, 2)]
    assert [result.holm_p for result in results] == list(holm(p))
    assert {result.pairs_tested for result in results} == {len(pairs)}
    if methods > 2:
        assert f"after Holm's correction over {len(pairs)} pairs" in paragraph(results[0], RULES)


def test_pairs_that_cannot_be_tested_do_not_count_in_the_correction() -> None:
    samples = [sample("a", NOISE[0, :20]), sample("b", NOISE[1, :20]), sample("c", NOISE[2, :4])]
    first, second = compare_pairs(samples, [("a", "b"), ("a", "c")], RULES)
    assert (first.pairs_tested, second.verdict) == (1, "too_few")


def test_the_order_of_replicates_changes_no_result() -> None:
    order = np.random.default_rng(0).permutation(30)
    d = 0.004 + 0.01 * NOISE[3, :30]
    base = NOISE[4, :30]
    for paired in (True, False):
        one, other = (
            compare_pairs(
                [sample("a", base[o] + d[o]), sample("b", base[o])], [("a", "b")], RULES, paired=paired
            )
            for o in (np.arange(30), order)
        )
        assert one == other


def test_an_undeclared_pair_is_called_exploratory() -> None:
    text = paragraph(compared(np.zeros(12)), RULES, exploratory=True)
    assert text.startswith("Exploratory, not declared before the run: tpe and random are equivalent")


@pytest.mark.parametrize(
    ("low", "high", "label"),
    [(0.5, 0.9, "no_evidence"), (0.51, 0.75, "not_meaningful"), (0.51, 0.76, "meaningful")],
)
def test_the_three_labels_at_their_borders(low: float, high: float, label: str) -> None:
    assert label_of(Interval(0.7, low, high, 0.95, "percentile"), 0.75) == label
    assert label_of(Interval(0.7, low, high, 0.95, "percentile").complement(), 0.75) == label
    assert label_of(Interval(1.0, None, None, 0.95, "none"), 0.75) is None


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("a", "a")], "with itself"),
        ([("a", "x")], r"No sample of \['x'\]"),
        ([("a", "b"), ("b", "a")], "named twice"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(pairs: list[tuple[str, str]], message: str) -> None:
    samples = [Sample("a", {0: 1.0}), Sample("b", {0: 1.0})]
    with pytest.raises(ValueError, match=message):
        compare_pairs(samples, pairs, RULES)
    with pytest.raises(ValueError, match="same method"):
        compare_pairs([samples[0], samples[0]], [], RULES)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"smallest_difference": -1.0}, "smallest difference"),
        ({"smallest_difference": float("nan")}, "smallest difference"),
        ({"alpha": 0.7}, "alpha"),
        ({"meaningful": 0.5}, "meaningful"),
        ({"power": 0.2}, "Power"),
        ({"resamples": 10}, "resamples"),
    ],
)
def test_rules_that_cannot_be_applied_are_refused(keywords: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rules(**{"direction": "maximize", "smallest_difference": 0.005, **keywords})  # type: ignore[arg-type]
