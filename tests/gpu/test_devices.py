"""A CPU and a GPU keep the contracts of devices that train: `make test-gpu` runs the GPU's part alone."""

from __future__ import annotations

import pytest
import torch

from tests.contracts.device_curves_contract import CurvesContract
from tests.contracts.device_parts_contract import PartsContract
from tests.contracts.device_slots_contract import SlotsContract
from tests.contracts.trained_devices import CpuDevice, CudaDevice, TrainedDevice


class TestOnCpu(CurvesContract, SlotsContract, PartsContract):
    @pytest.fixture
    def on(self) -> TrainedDevice:
        return CpuDevice()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.filterwarnings("default")  # a GPU's libraries warn of much that fails nothing
class TestOnCuda(CurvesContract, SlotsContract, PartsContract):
    @pytest.fixture
    def on(self) -> TrainedDevice:
        return CudaDevice()

    def test_kernels_of_our_own_give_what_operations_give(self) -> None:
        """Else steps silently do without them."""
        from objectives.fused.triton_trials import TRIALS
        from objectives.fused.triton_tried import same

        found = {name: [same(trial) for trial in made(torch.device("cuda"))] for name, made in TRIALS.items()}
        assert all(all(each) for each in found.values()), found
