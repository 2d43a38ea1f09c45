"""The same trials by Ray Tune: actors that are used again, and a search by Optuna. For benchmarks alone."""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from objectives.base import EpochEnd, Task, TrialStart
from objectives.bench import Ran, Work
from objectives.bench_gpu import NotHereError, held_by_torch, start_counting
from objectives.devices import resolve_device
from objectives.trainer import PlainEngine

NEEDED = ("ray.tune", "optuna", "pandas", "pyarrow")

MOST_SECONDS = 90.0
"""Whatever hangs must not cost the other ways their time: trials that are left then make an error."""

LOCAL = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "RAY_USAGE_STATS_ENABLED": "0"}


def tuned(work: Work, device: str, task: Task, concurrent: int) -> Ran:
    """Train the work by Ray Tune, so many trials at once. Starting Ray and its first actors is not counted.

    The search decides the learning rate, in a range too narrow to matter; the rest of a trial is the next
    of the work. Raises `NotHereError` where Ray Tune or what it needs is not installed.
    """
    for name in NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise NotHereError(f"{name} can't be imported here: {error}") from error
    import ray
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    on_gpu = resolve_device(device).type == "cuda"
    os.environ.update(LOCAL)
    ray.init(
        num_cpus=concurrent,
        num_gpus=int(on_gpu),
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
        runtime_env={"env_vars": LOCAL},
    )
    try:
        with tempfile.TemporaryDirectory(prefix="shoal-tune-") as folder:
            fixed = {"work": work, "device": device, "task": task, "folder": folder}
            found = tune.Tuner(
                tune.with_resources(
                    tune.with_parameters(trainable(tune), **fixed),
                    {"cpu": 1, "gpu": 1 / concurrent if on_gpu else 0},
                ),
                param_space={"learning_rate": tune.loguniform(0.003, 0.003001)},
                tune_config=tune.TuneConfig(
                    metric="accuracy",
                    mode="max",
                    search_alg=OptunaSearch(seed=work.seed),
                    num_samples=work.trials,
                    max_concurrent_trials=concurrent,
                    reuse_actors=True,
                    time_budget_s=MOST_SECONDS,
                ),
                run_config=tune.RunConfig(storage_path=folder, verbose=0),
            ).fit()
            if found.errors:
                raise RuntimeError(f"Ray Tune: {found.errors[0]}")
            began, ended = (
                [float(result.metrics[key]) for result in found if result.metrics]
                for key in ("began", "ended")
            )
            said = [int(result.metrics["memory"]) for result in found if result.metrics]
            trained = [int(result.metrics["training_iteration"]) for result in found if result.metrics]
            if sorted(trained) != sorted(work.ends().values()):
                raise RuntimeError(f"Ray Tune trained for {sorted(trained)} epochs")
    finally:
        ray.shutdown()
    return Ran(max(ended) - min(began), None, memory=concurrent * max(said) if on_gpu else None)


def trainable(tune: Any) -> type:
    """The class that Ray Tune's actors run; made here, for Ray may be missing."""

    class OneTrial(tune.Trainable):  # type: ignore[misc]  # its type is not known where Ray is missing
        def setup(self, config: dict[str, Any], work: Work, device: str, task: Task, folder: str) -> None:
            self._work, self._folder = work, folder
            self._starts, self._ends = work.starts(), work.ends()
            self._engine = PlainEngine(task, device, eager=True)
            self._held: TrialStart | None = None
            self._begin()

        def reset_config(self, new_config: dict[str, Any]) -> bool:
            self._begin()
            return True

        def _begin(self) -> None:
            start_counting()
            self._began = time.time()
            if self._held:
                self._engine.retire(self._held.trial_id)
            self._held = self._starts[claimed(Path(self._folder), self._work.trials)]
            self._engine.admit(self._held)

        def step(self) -> dict[str, Any]:
            assert self._held is not None, "it was set up"
            (event,) = self._engine.advance()
            assert isinstance(event, EpochEnd), event
            done = event.last or event.report.epoch >= self._ends[self._held.trial_id]
            return {
                "accuracy": event.report.metrics["accuracy"],
                "memory": held_by_torch() or 0,
                "began": self._began,
                "ended": time.time(),
                "done": done,
            }

        def save_checkpoint(self, checkpoint_dir: str) -> None:
            """There is none: nothing here is paused."""

        def load_checkpoint(self, checkpoint: Any) -> None:
            """As `save_checkpoint`."""

    return OneTrial


def claimed(folder: Path, trials: int) -> int:
    """The first trial that nobody has; processes of one machine may ask at once."""
    for number in range(trials):
        try:
            os.close(os.open(folder / f"trial-{number}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        return number
    raise RuntimeError("there are no trials left")
