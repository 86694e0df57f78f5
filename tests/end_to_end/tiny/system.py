"""A system small enough to be run dozens of times: how bright is the picture, in percent?

Pictures are 2×8×8; eight groups of 30 for calibration and twelve others for evaluation. Every
``defect`` plants one fault that onnxq has to name.
"""

import numpy as np
import torch

from onnxq.samples import Samples
from onnxq.verify.tasks import Regression

CALIBRATION_GROUPS, EVALUATION_GROUPS = range(8), range(100, 112)


class Net(torch.nn.Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(2, width, 3, padding=1),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.Flatten(),
        )
        self.head = torch.nn.Linear(width, 1)

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.head(self.features(picture))) * 100


class Quarters(Net):
    """The same weights on the four quarters of a picture: a batch that is made inside."""

    def forward(self, picture: torch.Tensor) -> torch.Tensor:
        quarters = picture.reshape(1, 2, 2, 4, 2, 4).permute(0, 2, 4, 1, 3, 5).reshape(4, 2, 4, 4)
        features = self.features(quarters).reshape(1, 4, -1).mean(1)
        return torch.sigmoid(self.head(features)) * 100


def pictures(groups: range, defect: str = "") -> Samples:
    parts, labels, names = [], [], []
    for group in groups:
        random = np.random.default_rng(group)
        brightness = random.uniform(0.1, 0.9, 30)
        noise = random.uniform(-0.1, 0.1, (30, 2, 8, 8))
        parts.append(np.clip(brightness[:, None, None, None] + noise, 0, 1))
        labels.append(100 * brightness)
        names += [f"group{group}"] * 30
    return Samples(
        name=f"pictures of groups {groups.start} to {groups.stop - 1}",
        inputs={"picture": _with_defect(np.concatenate(parts).astype(np.float32), defect)},
        labels=np.concatenate(labels).astype(np.float32),
        groups=np.array(names),
    )


def _with_defect(values: np.ndarray, defect: str) -> np.ndarray:
    if defect == "nan":
        values[:, 1, 2, 3] = np.nan
    elif defect == "inf":
        values[:, 0, 0, 0] = np.inf
    elif defect == "domain":
        values = values * 255
    elif defect == "shape":
        values = values[:, :, :7]
    elif defect == "dtype":
        values = values.astype(np.float64)
    return values


def calibration(defect: str = "", first: int = 0) -> Samples:
    if defect == "none":
        return pictures(range(1)).take(np.arange(0))
    return pictures(range(first, first + len(CALIBRATION_GROUPS)), defect)


def evaluation(defect: str = "") -> Samples:
    return pictures(EVALUATION_GROUPS, defect)


def brightness() -> Regression:
    return Regression(unit="percent")


def trained(seed: int = 0) -> dict[str, torch.Tensor]:
    """Weights after a short training: a mean absolute error of one to two percent."""
    torch.manual_seed(seed)
    net = Net()
    data = pictures(range(200, 208))
    x = torch.from_numpy(np.asarray(data.inputs["picture"]))
    y = torch.from_numpy(np.asarray(data.labels))[:, None]
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    for _ in range(150):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(net(x), y).backward()
        optimizer.step()
    return net.state_dict()
