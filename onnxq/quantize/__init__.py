"""Decide what becomes integer, then rewrite the graph."""
