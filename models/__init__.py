"""Reference systems: one folder each, with network, data, task and training."""
