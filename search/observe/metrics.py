"""Every metric that we export: its kind, labels, who exports it, and what it means.

Values of labels come from experiments and methods, of which the exporter tells a bounded number, and
from fixed lists; never from trials. Units are Prometheus' base units (seconds, bytes), and are the
end of a metric's name. A test holds alert rules, dashboard and runbook against this list.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["gauge", "counter", "histogram"]
Source: TypeAlias = Literal["exporter", "worker", "controller"]

PREFIX = "shoal_"

LIBRARY = frozenset({"up", "process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"})
"""Metrics of Prometheus itself and of its client library that rules and dashboards may use as well."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; counters are named as they are exported, with `_total`."""

    kind: Kind
    source: Source
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Of a histogram: upper ends, in the unit of its name."""


def exported_names(name: str) -> frozenset[str]:
    """The names under which a metric's samples appear."""
    if METRICS[name].kind == "histogram":
        return frozenset(f"{name}_{part}" for part in ("bucket", "sum", "count"))
    return frozenset({name})


CALL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
EPOCH_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)

BY_METHOD = ("experiment", "method")
BY_ROLE = ("experiment", "method", "role")

METRICS: Mapping[str, Metric] = {
    # ---- `shoal metrics`: what the database says ----
    "shoal_database_up": Metric(
        "gauge", "exporter", "1 if the exporter's last reading of the database worked."
    ),
    "shoal_database_reading_seconds": Metric(
        "gauge", "exporter", "What the last reading of all these numbers took."
    ),
    "shoal_database_reading_age_seconds": Metric(
        "gauge", "exporter", "Age of the numbers shown: readings are shared by scrapes that follow closely."
    ),
    "shoal_database_reading_statements": Metric(
        "gauge", "exporter", "Statements sent for the last reading; the number does not grow with trials."
    ),
    "shoal_database_round_trip_seconds": Metric(
        "gauge", "exporter", "What a statement took that asks for nothing, seen from the exporter."
    ),
    "shoal_database_size_bytes": Metric("gauge", "exporter", "Size of the database on disk."),
    "shoal_database_connections": Metric("gauge", "exporter", "Connections of clients to the server."),
    "shoal_database_connections_limit": Metric("gauge", "exporter", "The server's max_connections."),
    "shoal_database_oldest_transaction_seconds": Metric(
        "gauge",
        "exporter",
        "Age of the oldest open transaction in this database; 0: none. Needs pg_read_all_stats.",
    ),
    "shoal_experiments": Metric(
        "gauge", "exporter", "Experiments by state, also those that are not told of one by one.", ("state",)
    ),
    "shoal_experiment_info": Metric(
        "gauge",
        "exporter",
        "Always 1: an experiment's state, metric, and whether larger or smaller values are better.",
        ("experiment", "state", "metric", "direction"),
    ),
    "shoal_experiment_running": Metric(
        "gauge", "exporter", "1 for an experiment that should be running, by its record.", ("experiment",)
    ),
    "shoal_experiment_controlled": Metric(
        "gauge", "exporter", "1 if a living process controls the experiment.", ("experiment",)
    ),
    "shoal_experiment_stop_requested": Metric(
        "gauge", "exporter", "1 if the experiment was asked to stop.", ("experiment",)
    ),
    "shoal_last_progress_seconds": Metric(
        "gauge",
        "exporter",
        "Since an epoch was stored or an attempt ended; before, since the record changed.",
        ("experiment",),
    ),
    "shoal_workers": Metric(
        "gauge", "exporter", "Workers that hold a trial under a living lease.", ("experiment",)
    ),
    "shoal_trials": Metric(
        "gauge",
        "exporter",
        "Trials by state, paused at a rung among them; role: of the search, or retraining a winner.",
        (*BY_ROLE, "state"),
    ),
    "shoal_queue_depth": Metric(
        "gauge",
        "exporter",
        "Trials that wait for a slot: points of a grid, retrainings, and those given back. Not paused ones.",
        ("experiment",),
    ),
    "shoal_trials_running": Metric("gauge", "exporter", "Trials under a living lease.", BY_METHOD),
    "shoal_leases_overdue": Metric(
        "gauge", "exporter", "Leases that ran out and were not taken back yet.", ("experiment",)
    ),
    "shoal_attempts_total": Metric(
        "counter",
        "exporter",
        "Attempts that have ended: complete, pruned, failed, released (given back on purpose), lost.",
        (*BY_METHOD, "outcome"),
    ),
    "shoal_lease_expiries_total": Metric(
        "counter",
        "exporter",
        "Leases that were taken from a worker: it died, or was silent for too long.",
        ("experiment",),
    ),
    "shoal_fence_rejections_total": Metric(
        "counter", "exporter", "Writes that were refused because the lease was lost.", ("experiment",)
    ),
    "shoal_trials_given_up_total": Metric(
        "counter", "exporter", "Trials that failed after their last attempt was used up.", ("experiment",)
    ),
    "shoal_best_value": Metric(
        "gauge",
        "exporter",
        "Best value of the metric that a trial of the search reached at its end.",
        BY_METHOD,
    ),
    "shoal_epochs": Metric(
        "gauge", "exporter", "Epochs trained; one that was run again counts once.", BY_ROLE
    ),
    "shoal_device_seconds": Metric(
        "gauge",
        "exporter",
        "Device seconds of these epochs. May fall a little when an epoch is run again.",
        BY_ROLE,
    ),
    "shoal_sampler_seconds_total": Metric(
        "counter", "exporter", "Seconds spent on drawing values of trials.", BY_METHOD
    ),
    "shoal_pruning_saved_epochs": Metric(
        "gauge", "exporter", "Epochs that pruned trials had left.", BY_METHOD
    ),
    "shoal_pruning_saved_seconds": Metric(
        "gauge",
        "exporter",
        "Device seconds that pruned trials had left, each at its own pace.",
        BY_METHOD,
    ),
    "shoal_schedule_paused": Metric("gauge", "exporter", "1 for a schedule that is paused.", ("schedule",)),
    "shoal_schedule_overdue_seconds": Metric(
        "gauge",
        "exporter",
        "Since a schedule's next firing was due that nobody has decided about; 0: none is.",
        ("schedule",),
    ),
    "shoal_schedule_queued_seconds": Metric(
        "gauge",
        "exporter",
        "Since the oldest firing was made that waits to run; 0: none does.",
        ("schedule",),
    ),
    "shoal_schedule_firings": Metric(
        "gauge", "exporter", "A schedule's firings by state.", ("schedule", "state")
    ),
    "shoal_notices_unsent": Metric("gauge", "exporter", "Webhook notes that wait to be sent."),
    "shoal_notices_oldest_seconds": Metric(
        "gauge", "exporter", "Age of the oldest webhook note that waits to be sent; 0: there is none."
    ),
    "shoal_notices_given_up": Metric("gauge", "exporter", "Webhook notes that could not be sent."),
    # ---- workers ----
    "shoal_worker_info": Metric(
        "gauge",
        "worker",
        "Always 1: the worker's name, experiment, device and trainer.",
        ("worker", "experiment", "device", "trainer"),
    ),
    "shoal_worker_slots": Metric("gauge", "worker", "Trials that the engine has room for."),
    "shoal_worker_slots_taken": Metric("gauge", "worker", "Trials in the engine."),
    "shoal_worker_trials_held": Metric("gauge", "worker", "Leases held, those asked ahead among them."),
    "shoal_worker_row_occupancy": Metric(
        "gauge", "worker", "Part of the rows of all fused steps so far that belonged to a trial."
    ),
    "shoal_worker_programs": Metric("gauge", "worker", "Fused programs built so far."),
    "shoal_worker_images_total": Metric("counter", "worker", "Images trained on."),
    "shoal_worker_epoch_seconds": Metric(
        "histogram", "worker", "Device seconds of a trial's epoch, validation included.", (), EPOCH_BUCKETS
    ),
    "shoal_worker_claims_total": Metric("counter", "worker", "Trials claimed."),
    "shoal_worker_endings_total": Metric(
        "counter",
        "worker",
        "Trials parted with: complete, pruned, failed, released, retry (its attempt failed), lost.",
        ("outcome",),
    ),
    "shoal_worker_beats_total": Metric("counter", "worker", "Leases prolonged by a heartbeat."),
    "shoal_worker_last_write_seconds": Metric(
        "gauge", "worker", "Since the database took a write of this worker last."
    ),
    "shoal_worker_checkpoints_total": Metric(
        "counter", "worker", "Checkpoints of running trials.", ("outcome",)
    ),
    "shoal_worker_checkpoint_seconds": Metric(
        "histogram", "worker", "What a checkpoint took.", (), CALL_BUCKETS
    ),
    "shoal_worker_checkpoint_disk_free_bytes": Metric(
        "gauge", "worker", "Free on the disk where checkpoints are kept."
    ),
    "shoal_worker_device_memory_bytes": Metric(
        "gauge", "worker", "A GPU's memory: allocated to tensors, reserved by torch, total.", ("kind",)
    ),
    "shoal_database_call_seconds": Metric(
        "histogram",
        "worker",
        "What a call of the ledger took, tries included: claim, write, expire.",
        ("call",),
        CALL_BUCKETS,
    ),
    "shoal_database_failures_total": Metric(
        "counter", "worker", "Calls of the ledger that failed after all tries.", ("call",)
    ),
    "shoal_database_retries_total": Metric(
        "counter", "worker", "Tries of this process after the database was away, full or busy."
    ),
    # ---- controllers ----
    "shoal_controller_workers": Metric(
        "gauge", "controller", "Workers of this run that are alive.", ("experiment",)
    ),
    "shoal_controller_run_seconds": Metric("gauge", "controller", "Since this run began.", ("experiment",)),
    "shoal_controller_last_look_seconds": Metric(
        "gauge", "controller", "Since the controller saw the database last.", ("experiment",)
    ),
    "shoal_controller_trials_planned": Metric(
        "gauge", "controller", "Trials that all searches together may have.", ("experiment",)
    ),
    "shoal_controller_trials_ended": Metric(
        "gauge", "controller", "Trials of the searches that have ended.", ("experiment",)
    ),
    "shoal_controller_troubles_total": Metric(
        "counter", "controller", "Workers that died, trials queued again, the database away.", ("experiment",)
    ),
    "shoal_sink_trials_total": Metric(
        "counter", "controller", "Finished trials written to a sink.", ("sink",)
    ),
    "shoal_sink_failures_total": Metric("counter", "controller", "Tries of a sink that failed.", ("sink",)),
}
"""Name → metric."""
