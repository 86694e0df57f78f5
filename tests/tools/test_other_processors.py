"""The detector of saturation, and narrowed weights, on a real runtime without VNNI."""

from pathlib import Path

import pytest

from benchmarks.saturation import judge
from benchmarks.saturation_networks import made_up
from onnxq.provenance import cpu_flags
from tools.emulation.commands import EmulationError
from tools.emulation.guests import x86_guests

FOLDER = Path(__file__).parents[2] / "build" / "emulation"


@pytest.fixture(scope="module")
def haswell():
    if not {"avx512_vnni", "avx_vnni"} & set(cpu_flags()):
        pytest.skip("this processor has no VNNI: there is nothing exact to compare with")
    try:
        (guest,) = x86_guests(FOLDER)
    except EmulationError as fault:
        pytest.skip(f"the emulator cannot be had here: {fault}")
    return guest


@pytest.mark.long
@pytest.mark.parametrize("name", ["matmul", "cnn"])
def test_the_detector_agrees_with_the_runtime_and_advised_files_are_whole(name, haswell, tmp_path):
    found = judge(made_up(name, tmp_path), tmp_path, haswell)
    assert found.truly > 0  # else nothing is shown
    assert found.agree == found.predicted == found.nodes
    assert found.there_db < found.here_db - 3
    assert found.whole
    assert max(found.loss_db, found.refined_loss_db) < 1
