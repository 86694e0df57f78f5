"""Which layers cost accuracy, and the cheapest precision of each that is still good enough."""
