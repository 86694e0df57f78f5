"""Figures that are promised, each a script that prints a ratio."""
