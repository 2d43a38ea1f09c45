"""What asking and pruning cost against Optuna's own samplers and pruners, and what the values are worth.

    python -m tests.benchmarks.sampling [--parts ask prune quality gp] [--seeds 30] [--output results.json]

`ask`: CPU milliseconds of asking for one trial of 6 mixed dimensions in a study with so many finished ones,
one more finishing between two asks; ours and Optuna's in turn on storages in memory. `prune`: CPU
milliseconds of judging 256 running trials among 10,000 finished ones. `quality`: regret after a number of
trials on test functions with mixed dimensions, ours and Optuna's, one and four trials asked at once, each
seed once. `gp`: the same for the Gaussian process, and for one that hands over to TPE early. The JSON has
every single number; a part that is run again replaces what the file has of it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial
from scipy.stats import bootstrap, mannwhitneyu

from search.experiment.settings import METHODS, PRUNER_SETTINGS
from search.pruning.pruners import build_pool_pruner, build_pruner
from search.pruning.rungs import RungTable
from search.sampling.samplers import build_sampler
from tests.benchmarks.functions import FUNCTIONS

SPACE: dict[str, BaseDistribution] = {
    "rate": FloatDistribution(1e-4, 1.0, log=True),
    "momentum": FloatDistribution(0.0, 1.0),
    "strength": FloatDistribution(-5.0, 5.0),
    "width": IntDistribution(4, 64),
    "loss": CategoricalDistribution(["a", "b", "c"]),
    "optimizer": CategoricalDistribution(["p", "q", "r", "s"]),
}


EPOCHS = 20


def ours(method: str, seed: int, **settings: Any) -> BaseSampler:
    return build_sampler(method, METHODS[method](**settings), {}, seed=seed, replicate=0)


def stock_tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def stock_gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


ARMS: dict[str, Callable[[int], BaseSampler]] = {
    "random": lambda seed: ours("random", seed),
    "tpe": lambda seed: ours("tpe", seed),
    "tpe, Optuna's": stock_tpe,
    "gp": lambda seed: ours("gp", seed),
    "gp, Optuna's": stock_gp,
    "gp, TPE after 25": lambda seed: ours("gp", seed, model_trials=25),
}


# What an ask costs


def filled(trials: int, sampler: BaseSampler) -> optuna.Study:
    """A study with finished trials, four in ten of them pruned."""
    chance, draw = random.Random(1), RandomSampler(seed=1)
    study = optuna.create_study(sampler=sampler)
    for _ in range(trials):
        params = {name: draw.sample_independent(None, None, name, dist) for name, dist in SPACE.items()}
        value = (params["momentum"] - 0.5) ** 2 + (params["strength"] - 1) ** 2 + params["width"] / 64
        pruned = chance.random() < 0.4
        steps = chance.randint(1, EPOCHS - 1) if pruned else EPOCHS
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
                params=params,
                distributions=SPACE,
                value=value,
                intermediate_values={step: value + 1 / step for step in range(1, steps + 1)},
            )
        )
    return study


def ask_costs(arms: Sequence[str], sizes: Sequence[int], asks: int) -> list[dict[str, Any]]:
    found = []
    for size in sizes:
        studies = {arm: filled(size, ARMS[arm](1)) for arm in arms}
        costs: dict[str, list[float]] = {arm: [] for arm in arms}
        for number in range(asks + 1):
            for arm, study in studies.items():
                started = time.process_time()
                trial = study.ask(SPACE)
                if number:  # the first reads the study
                    costs[arm].append(1e3 * (time.process_time() - started))
                study.tell(trial, 0.5)
        entry = {"trials": size, "cpu_ms": {arm: {**summary(c), "all": c} for arm, c in costs.items()}}
        first, *others = arms
        entry["ratios"] = {
            f"{other} / {first}": summary([b / a for a, b in zip(costs[first], costs[other], strict=True)])
            for other in others
        }
        print(size, {arm: round(statistics.median(c), 2) for arm, c in costs.items()}, flush=True)
        found.append(entry)
    return found


# What judging a pool costs


def prune_costs(rounds: int) -> list[dict[str, Any]]:
    chance = random.Random(2)
    study = filled(10_000, RandomSampler(seed=1))
    running = [study.ask() for _ in range(256)]
    for trial in running:
        for step in range(1, chance.randint(2, EPOCHS)):
            trial.report(chance.random(), step)
    found = []
    for name, settings in PRUNER_SETTINGS.items():
        rule = build_pool_pruner(settings(), EPOCHS, study.study_name, "minimize")
        stock = build_pruner(settings(), EPOCHS)
        trials = study.get_trials(deepcopy=False)
        asked = [(trial.number, trials[trial.number].last_step or 0) for trial in running]
        table = RungTable()
        table.update(trials)
        rule.verdicts(table, asked)
        update, verdicts, one = [], [], []
        for number in range(rounds):
            study.add_trial(trials[number])
            now = study.get_trials(deepcopy=False)
            started = time.process_time()
            table.update(now)
            updated = time.process_time()
            rule.verdicts(table, asked)
            ended = time.process_time()
            update.append(1e3 * (updated - started))
            verdicts.append(1e3 * (ended - updated))
            trial = now[running[number].number]
            started = time.process_time()
            stock.prune(study, trial)
            one.append(1e3 * (time.process_time() - started))
        found.append(
            {
                "rule": name,
                "update_cpu_ms": {**summary(update), "all": update},
                "verdicts_of_256_cpu_ms": {**summary(verdicts), "all": verdicts},
                "optuna_one_verdict_cpu_ms": {**summary(one), "all": one},
            }
        )
        print(name, [round(statistics.median(times), 3) for times in (update, verdicts, one)], flush=True)
    return found


# What the values are worth


def regret(name: str, arm: str, seed: int, trials: int, at_once: int) -> float:
    """How far above the least value the best of so many trials is."""
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    function = FUNCTIONS[name]
    study = optuna.create_study(sampler=ARMS[arm](seed))
    for _ in range(trials // at_once):
        asked = []
        for _ in range(at_once):
            trial = study.ask()
            for dimension, distribution in function.space.items():
                if dimension == "x3" and trial.params.get("kind") == "short":
                    continue
                trial._suggest(dimension, distribution)
            asked.append(trial)
        for trial in asked:
            study.tell(trial, function.value(trial.params))
    return study.best_value


def quality(
    pool: ProcessPoolExecutor,
    names: Sequence[str],
    arms: Sequence[tuple[str, int]],
    pairs: Sequence[tuple[tuple[str, int], tuple[str, int]]],
    trials: int,
    seeds: int,
) -> Iterator[dict[str, Any]]:
    jobs = {
        (name, arm, q): [pool.submit(regret, name, arm, seed, trials, q) for seed in range(seeds)]
        for name in names
        for arm, q in arms
    }
    for name in names:
        values = {(arm, q): [job.result() for job in jobs[name, arm, q]] for arm, q in arms}
        entry: dict[str, Any] = {
            "function": name,
            "trials": trials,
            "seeds": seeds,
            "regret": {f"{arm}, {q} at once": {**summary(v), "all": v} for (arm, q), v in values.items()},
            "chance_of_less_regret": {
                f"{a}, {q} at once against {b}, {r}": superiority(values[a, q], values[b, r])
                for (a, q), (b, r) in pairs
            },
        }
        print(name, json.dumps(entry["chance_of_less_regret"]), flush=True)
        yield entry


def superiority(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """P(a < b) + P(a = b)/2 with its bootstrap interval (95 %), and Mann-Whitney's two-sided p."""

    def share(a: Any, b: Any, axis: int = -1) -> Any:
        a, b = np.moveaxis(np.asarray(a), axis, -1), np.moveaxis(np.asarray(b), axis, -1)
        less = a[..., :, None] < b[..., None, :]
        return (less + 0.5 * (a[..., :, None] == b[..., None, :])).mean(axis=(-1, -2))

    sample = (np.asarray(ours), np.asarray(theirs))
    interval = bootstrap(
        sample, share, method="percentile", n_resamples=2000, batch=200, rng=np.random.default_rng(1)
    ).confidence_interval
    p = float(mannwhitneyu(*sample).pvalue)
    return {
        "estimate": float(share(*sample)),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": p,
    }


def summary(values: Sequence[float]) -> dict[str, float]:
    quarters = statistics.quantiles(values, n=4)
    return {
        "n": len(values),
        "median": statistics.median(values),
        "first_quartile": quarters[0],
        "third_quartile": quarters[2],
        "least": min(values),
        "most": max(values),
    }


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], capture_output=True, text=True, check=False).stdout.strip()


def circumstances() -> dict[str, Any]:
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "command": "python -m tests.benchmarks.sampling " + " ".join(sys.argv[1:]),
        "revision": git("rev-parse", "HEAD"),
        "changed_since": git("status", "--porcelain", "--", "search", "tests/benchmarks").splitlines(),
        "versions": {name: version(name) for name in ("optuna", "numpy", "scipy", "torch")},
        "python": platform.python_version(),
        "cpu": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=["ask", "prune", "quality", "gp"], default=["ask", "prune"]
    )
    parser.add_argument("--seeds", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    before = circumstances()

    def keep(part: str, found: object) -> None:
        if arguments.output:
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            kept = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
            kept[part] = {"circumstances": {**before, "load_after": os.getloadavg()}, "found": found}
            arguments.output.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")

    if "ask" in arguments.parts:
        keep("ask", ask_costs(["tpe", "tpe, Optuna's", "random"], (100, 1_000, 10_000), 20))
        keep("ask of a late gp", ask_costs(["gp"], (10_000,), 20))
        keep("ask of a gp", ask_costs(["gp", "gp, Optuna's"], (30, 100, 300), 5))
    if "prune" in arguments.parts:
        keep("prune", prune_costs(50))
    with ProcessPoolExecutor(arguments.processes) as pool:
        if "quality" in arguments.parts:
            stock = "tpe, Optuna's"
            arms = [(arm, q) for arm in ("tpe", stock) for q in (1, 4)] + [("random", 1)]
            pairs = [(("tpe", q), (stock, r)) for q, r in ((1, 1), (4, 4), (4, 1))]
            found: list[object] = []
            for entry in quality(pool, list(FUNCTIONS), arms, pairs, 60, arguments.seeds):
                keep("quality", found := [*found, entry])
        if "gp" in arguments.parts:
            gp, stock, early, tpe = "gp", "gp, Optuna's", "gp, TPE after 25", "tpe, Optuna's"
            pairs = [((gp, 1), (stock, 1)), ((early, 1), (stock, 1)), ((early, 1), (tpe, 1))]
            arms = [(arm, 1) for arm in (gp, stock, early, tpe)]
            found = []
            for entry in quality(pool, ["branin", "hartmann6"], arms, pairs, 44, arguments.seeds):
                keep("gp", found := [*found, entry])


if __name__ == "__main__":
    main()
