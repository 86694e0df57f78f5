"""The shape of one window, known to the network and to whatever makes its input."""

__all__ = ["CHANNELS", "PATCH_PX", "ROIS", "WINDOW_FRAMES"]

WINDOW_FRAMES = 8
ROIS = 3  # forehead, left cheek, right cheek
PATCH_PX = 36
CHANNELS = 3  # red, green, blue
