import numpy as np
import pytest
import torch

from models.rppg.network import UltraLightRPPG
from models.rppg.train import SHIPPED, load
from onnxq.errors import CheckpointError


def weights_of(module: torch.nn.Module) -> list[int]:
    return [parameter.numel() for parameter in module.parameters()]


def test_network_has_20193_parameters_and_no_other():
    network = UltraLightRPPG()
    assert sum(weights_of(network)) == 20_193
    assert sum(weights_of(network.spatial)) == 9_840
    assert weights_of(network.spatial) == [432, 16, 16, 16, 4608, 32, 32, 32, 4608, 16, 16, 16]
    assert sum(weights_of(network.temporal)) + sum(weights_of(network.head)) == 10_353


@pytest.mark.parametrize("batch", [1, 3])
def test_output_is_one_heart_rate_between_30_and_180_a_window(batch):
    output = UltraLightRPPG().eval()(torch.rand(batch, 8, 3, 36, 36, 3))
    assert output.shape == (batch, 1)
    assert ((output > 30) & (output < 180)).all()


def test_every_layer_has_the_shape_of_the_table():
    network, seen = UltraLightRPPG().eval(), []
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Conv1d | torch.nn.Linear):
            module.register_forward_hook(lambda _m, _i, out: seen.append(tuple(out.shape[1:])))
    network(torch.rand(1, 8, 3, 36, 36, 3))
    assert seen == [(16, 36, 36), (32, 18, 18), (16, 9, 9), (32, 8), (16, 8), (32,), (1,)]


def test_patches_are_read_frame_by_frame_and_region_by_region():
    network, window = UltraLightRPPG().eval(), torch.rand(1, 8, 3, 36, 36, 3)
    features = []
    network.pooled_features.register_forward_hook(lambda _m, _i, out: features.append(out))
    network(window)
    alone = network.spatial(window[0, 5, 2].permute(2, 0, 1)[None])
    torch.testing.assert_close(features[0][5 * 3 + 2], alone[0])


def test_shipped_weights_fit_strictly_and_are_small():
    network = load()
    assert not network.training
    assert SHIPPED.stat().st_size < 100_000
    assert np.isfinite(network(torch.rand(1, 8, 3, 36, 36, 3)).detach().numpy()).all()


def test_foreign_weights_are_named(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"no weights")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors"):
        load(path)
