"""UltraLightRPPG: eight frames of three face regions → heart rate. 20,193 parameters."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from models.rppg.window_shape import CHANNELS, ROIS, WINDOW_FRAMES

__all__ = ["UltraLightRPPG"]

FEATURES = 16  # per region and frame
LOWEST_BPM, SPAN_BPM = 30.0, 150.0


class UltraLightRPPG(nn.Module):
    """A convolutional network on every patch (9,840 parameters), then one over time (10,353).

    ``pooled_features`` stands between the two and does nothing; training puts a module there that
    imitates the rounding of an 8-bit quantizer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Sequential(
            *_conv_bn_relu(CHANNELS, 16),
            nn.MaxPool2d(2),
            *_conv_bn_relu(16, 32),
            nn.MaxPool2d(2),
            *_conv_bn_relu(32, FEATURES),
            nn.AdaptiveAvgPool2d(1),
        )
        self.pooled_features: nn.Module = nn.Identity()
        self.temporal = nn.Sequential(
            nn.Conv1d(ROIS * FEATURES, 32, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(32, 16, 3, padding=1),
            nn.ReLU(),
        )
        self.head = nn.Sequential(
            nn.Linear(16 * WINDOW_FRAMES, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def forward(self, input: Float[Tensor, "b 8 3 h w 3"]) -> Float[Tensor, "b 1"]:
        """Heart rate in BPM, in (30, 180), of windows of RGB patches in [0, 1].

        The exported network takes 36 x 36 pixels; training also runs on smaller patches.
        """
        height, width = input.shape[3], input.shape[4]
        patches = input.permute(0, 1, 2, 5, 3, 4).reshape(-1, CHANNELS, height, width)
        features = self.pooled_features(self.spatial(patches))
        series = features.reshape(-1, WINDOW_FRAMES, ROIS * FEATURES).transpose(1, 2)
        rate = self.head(self.temporal(series).flatten(1))
        return torch.sigmoid(rate) * SPAN_BPM + LOWEST_BPM


def _conv_bn_relu(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()
