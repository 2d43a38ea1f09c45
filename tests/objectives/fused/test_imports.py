"""What a process imports that trains the built-in network on a CPU: nothing that it has no use for."""

from __future__ import annotations

import subprocess
import sys

TRAINS = """
import sys
from objectives.base import Choice, DataSpec, EpochEnd, Task, TrialConfig, TrialStart
from objectives.fused import FusedEngine
from objectives.optimizers import OPTIMIZERS

engine = FusedEngine(Task(data=DataSpec(name="digits", limit=100)), "cpu", slots=len(OPTIMIZERS))
for number, name in enumerate(OPTIMIZERS):
    model = Choice("cnn", {"depth": 1, "width": 2, "dense": 4})
    config = TrialConfig(optimizer=Choice(name), model=model, batch_size=32, epochs=1)
    engine.admit(TrialStart(trial_id=number, config=config, seed=number, split_seed=0))
ended = 0
while ended < len(OPTIMIZERS):
    events = engine.advance()
    assert events and all(isinstance(event, EpochEnd) for event in events), events
    ended += len(events)
assert engine.programs_built == 1 and engine.images_trained > 0
print("torch._dynamo" in sys.modules)
"""


def test_training_fused_on_a_cpu_does_not_import_torchs_compiler() -> None:
    """That takes more than a second of a worker's start."""
    done = subprocess.run(
        [sys.executable, "-c", TRAINS], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"
