"""The kinds of data that samples are read from: one file a kind.

A reader turns a file into ``content.Content``, named columns of which no row is read yet;
``assign`` gives them to the inputs of a graph. Rows are read from the disk when they are asked for.
"""
