"""Run samples through a graph and turn what was seen into ranges."""
