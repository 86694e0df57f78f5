"""Float steps: the same function in numbers that are easier to quantize, before calibration."""
