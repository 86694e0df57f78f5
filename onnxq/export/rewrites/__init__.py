"""Graph rewrites, one a file. Each changes a graph in place and says how many places it changed."""
