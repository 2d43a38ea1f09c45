"""All figures of a report, in the order of the page."""

from __future__ import annotations

from search.compare.figures.across import PARALLELISM, RANKS
from search.compare.figures.anytime import figure_on
from search.compare.figures.base import Builder, Figure, Material, Omitted
from search.compare.figures.curves import pruned_figure, winners_figure
from search.compare.figures.dependence import dependence_figure
from search.compare.figures.diverged import diverged_figure
from search.compare.figures.gap import gap_figure
from search.compare.figures.importances import importance_figure
from search.compare.figures.maps import pair_map
from search.compare.figures.parallel import parallel_figure
from search.compare.figures.regret_course import regret_figure
from search.compare.figures.scores import scores_figure
from search.compare.figures.superiority import superiority_figure
from search.compare.figures.targets import target_figure
from search.compare.figures.timeline import timeline_figure
from search.compare.figures.values import values_figure

ONE_EXPERIMENT = (
    Omitted(*RANKS, "A single experiment has one dataset, and 6 are the least."),
    Omitted(*PARALLELISM, "Each method ran with one number of trials in flight."),
)
"""Figures that take several experiments."""


def figures_of(material: Material) -> tuple[Figure | Omitted, ...]:
    """Every figure, or why it is left out; those that take several experiments come last."""
    return (*(build(material) for build in FIGURES.values()), *ONE_EXPERIMENT)


FIGURES: dict[str, Builder] = {
    "scores": scores_figure,
    "time-to-target": target_figure,
    "best-so-far-epochs": figure_on("epochs"),
    "best-so-far-trials": figure_on("trials"),
    "best-so-far-seconds": figure_on("seconds"),
    "regret": regret_figure,
    "superiority": superiority_figure,
    "importances": importance_figure,
    "dependence": dependence_figure,
    "loss-optimizer": pair_map(
        "loss-optimizer", "Loss and optimizer, each at its best", ("loss",), ("optimizer",)
    ),
    "rate-batch": pair_map(
        "rate-batch", "Learning rate and batch size, each at its best", ("batch_size",), ("learning_rate",)
    ),
    "gap": gap_figure,
    "diverged": diverged_figure,
    "parallel": parallel_figure,
    "trial-values": values_figure,
    "learning-curves": winners_figure,
    "pruned": pruned_figure,
    "timeline": timeline_figure,
}
"""Key → builder. A new figure is a builder here; the page, its data files and the tests find it."""
