"""Networks, graphs and samples that hold one known defect each, of systems that were lost by it.

Pictures and heart rates are those of ``tiny``; what is planted is said in each docstring.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import torch
from tiny.system import CALIBRATION_GROUPS, EVALUATION_GROUPS, Net, pictures
from torch import Tensor, nn

from onnxq.samples import Samples
from tests.onnx_text import model_of

LATENT = 8


# --- networks -----------------------------------------------------------------------------------


class Rebuilt(Net):
    """``Net`` rebuilt by hand in another framework: no bias in the convolution, another epsilon."""

    def __init__(self) -> None:
        super().__init__()
        self.features[0].bias = None
        self.features[1].eps = 1e-3


class Offset(Net):
    """``Net`` with 1.5e-5 on top of its answer."""

    def forward(self, picture: Tensor) -> Tensor:
        return super().forward(picture) + 1.5e-5


class TwoNames(nn.Module):
    """One module under two names, as a sampler and the pipeline that holds it share a network."""

    def __init__(self) -> None:
        super().__init__()
        self.unet = Net()
        self.diffusion = nn.ModuleDict({"model": self.unet})

    def forward(self, picture: Tensor) -> Tensor:
        return (self.unet(picture) + self.diffusion["model"](1 - picture)) / 2


class Decoder(nn.Module):
    """BatchNorm behind a transposed convolution, which eager quantization never fused."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Sequential(
            nn.ConvTranspose2d(2, 6, 4, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.head = nn.Linear(4, 1)

    def forward(self, picture: Tensor) -> Tensor:
        return torch.sigmoid(self.head(self.up(picture))) * 100


class Sampler(nn.Module):
    """Draws its latent from a normal distribution where it is traced; no network runs."""

    def __init__(self) -> None:
        super().__init__()
        self.denoise, self.decode = nn.Linear(LATENT, LATENT), nn.Linear(LATENT, 1)

    def forward(self, noise: Tensor) -> Tensor:
        traced = torch.compiler.is_exporting()
        latent = torch.randn_like(noise) if traced else torch.tanh(self.denoise(noise))
        return self.decode(latent)


class DeadTime(nn.Module):
    """Computes a time embedding and throws it away."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(1, 16), nn.GELU(), nn.Linear(16, 16))
        self.body = nn.Linear(LATENT, LATENT)

    def forward(self, latent: Tensor, time: Tensor) -> Tensor:
        self.embed(time)
        return torch.tanh(self.body(latent))


class Odd(nn.Module):
    """A negative padding, an Einsum, an L2 norm, a class token: what ordinary exports bring."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.token = nn.Parameter(torch.full((1, 1, 6), 0.3))
        self.mix = nn.Parameter(torch.linspace(-1, 1, 36).reshape(6, 6))
        self.head = nn.Linear(6, 1)

    def forward(self, picture: Tensor) -> Tensor:
        cropped = nn.functional.pad(self.conv(picture), (-1, -1, -1, -1))
        rows = cropped.flatten(2).transpose(1, 2)
        mixed = torch.einsum("bnc,cd->bnd", rows, self.mix)
        unit = nn.functional.normalize(mixed, dim=-1)
        joined = torch.cat([self.token.expand(len(picture), -1, -1), unit], dim=1)
        return self.head(joined.mean(1))


class OverTime(nn.Module):
    """Convolutions over one axis, one of a subclass: what no table of modules knew."""

    class Padded(nn.Conv1d):
        """A subclass, as projects like to have one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv1d(2, 8, 3, padding=1), self.Padded(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 1)

    def forward(self, picture: Tensor) -> Tensor:
        series = self.second(torch.relu(self.first(picture.mean(2))))
        return torch.sigmoid(self.head(torch.relu(series).mean(2))) * 100


# --- samples ------------------------------------------------------------------------------------


def mixed_labels() -> Samples:
    """Labels of which a third is the pulse wave, and a third timestamps: all of one text file."""
    good = pictures(CALIBRATION_GROUPS)
    labels = np.array(good.labels, np.float32)
    labels[1::3] = np.linspace(-2.79, 2.5, len(labels[1::3]))
    labels[2::3] = np.linspace(0, 127, len(labels[2::3]))
    return _with(good, labels=labels)


def kilometres() -> Samples:
    """Labels in another unit than the network answers in."""
    good = pictures(EVALUATION_GROUPS)
    return _with(good, labels=np.array(good.labels, np.float32) * 50)


def ordered() -> Samples:
    """The darkest pictures first, none brighter than 0.878: a file ordered by its labels."""
    good = pictures(CALIBRATION_GROUPS)
    order = np.argsort(np.asarray(good.labels))
    values = np.minimum(np.asarray(good.inputs["picture"])[order], np.float32(0.878))
    return Samples(
        "pictures in order", {"picture": values},
        labels=np.asarray(good.labels)[order], groups=np.asarray(good.groups)[order],
    )  # fmt: skip


def one_subject() -> Samples:
    """The last windows of a file: all of one subject, whom calibration has seen."""
    last = CALIBRATION_GROUPS.stop - 1
    return pictures(range(last, last + 1))


def in_batches() -> Samples:
    """Samples that somebody has put together to batches of six."""
    good = pictures(EVALUATION_GROUPS)
    values = np.asarray(good.inputs["picture"])
    return Samples("batches", {"picture": values.reshape(-1, 6, *values.shape[1:])})


def normal_latents() -> Samples:
    """What a Gaussian gives for latents that the encoder's tanh keeps within −1 to 1."""
    values = np.random.default_rng(0).standard_normal((60, LATENT)).astype(np.float32)
    return Samples("latents", {"latent": values, "time": np.zeros((60, 1), np.float32)})


def latents(first: int = 0, noise: bool = False) -> Samples:
    """Latents within −1 to 1, each with a step in time, and a label; or the noise they come of."""
    random = np.random.default_rng(first)
    values = random.uniform(-1, 1, (60, LATENT)).astype(np.float32)
    time = random.uniform(0, 1, (60, 1)).astype(np.float32)
    inputs = {"noise": values} if noise else {"latent": values, "time": time}
    return Samples("latents", inputs, labels=values.mean(1))


def placeholder_range() -> Samples:
    """Seismic records normalized by a placeholder's extremes, 0 to 12, in place of −26 to 52."""
    true = np.random.default_rng(0).uniform(-26.48, 52.32, (60, LATENT))
    log = np.sign(true) * np.log1p(np.abs(true))
    values = 2 * log / np.log1p(12) - 1
    return Samples("seismic", {"latent": values.astype(np.float32),
                               "time": np.zeros((60, 1), np.float32)})  # fmt: skip


def _with(samples: Samples, **changed: np.ndarray) -> Samples:
    values = np.asarray(samples.inputs["picture"])
    facts = {"labels": samples.labels, "groups": samples.groups} | changed
    return Samples(samples.name, {"picture": values}, **facts)


# --- graphs -------------------------------------------------------------------------------------


def graph(folder: Path, text: str, opset: int = 17, **constants: np.ndarray) -> Path:
    """A graph given as text, with its constants, as a file in ``folder``."""
    head = f'<ir_version: 8, opset_import: ["": {opset}]> g ('
    model = model_of(head + text, **constants)
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def random_array(*shape: int, seed: int = 0) -> np.ndarray:
    """Numbers from −0.5 to 0.5."""
    return np.random.default_rng(seed).uniform(-0.5, 0.5, shape).astype(np.float32)
