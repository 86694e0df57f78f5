"""Small torch networks and graphs that the tests of the export stage share."""

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from tests.onnx_text import model_of


def randomized(network: nn.Module, seed: int = 0) -> nn.Module:
    """Weights and running statistics that are neither 0 nor 1, in evaluation mode."""
    torch.manual_seed(seed)
    for tensor in network.state_dict().values():
        if tensor.is_floating_point():
            tensor.uniform_(-0.5, 0.5)
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_var.uniform_(0.5, 2)
    return network.eval()


class SmallPulse(nn.Module):
    """In small what reads a pulse from patches: channels last, two kinds of convolution, a rate."""

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(1),
        )
        self.temporal = nn.Conv1d(8, 4, 3, padding=1)
        self.head = nn.Linear(16, 1)

    def forward(self, input: Tensor) -> Tensor:
        patches = input.permute(0, 1, 2, 5, 3, 4).reshape(-1, 3, 8, 8)
        series = self.spatial(patches).reshape(-1, 4, 8).transpose(1, 2)
        return torch.sigmoid(self.head(torch.relu(self.temporal(series)).flatten(1))) * 150 + 30


class Mixed(nn.Module):
    """Grouped ConvTranspose + BatchNorm, mean over pixels, Linear + BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)
        self.norm = nn.BatchNorm2d(6)
        self.linear = nn.Linear(6, 5)
        self.last = nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.linear(torch.relu(self.norm(self.up(x))).mean((2, 3))))


class DeadTime(nn.Module):
    """A time input whose branch is computed and thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(1, 4)
        self.body = nn.Linear(4, 4)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        self.time(time)
        return self.body(x)


class FixedBatch(nn.Module):
    """A network that cannot take any number of samples but one."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(1, 4) * 2


def not_a_network() -> str:
    return "no network"


def failing() -> nn.Module:
    raise RuntimeError("no such variant")


def small_pulse() -> nn.Module:
    return SmallPulse()


def graph(text: str, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from ONNX's text form, opset 17 if it does not say, with its constants."""
    head = "" if text.lstrip().startswith("<") else '<ir_version: 8, opset_import: ["": 17]>'
    model = model_of(head + text, **constants)
    return model


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
