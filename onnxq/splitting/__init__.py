"""A graph cut at named tensors into parts that a small device can take, and run again as one."""
