"""Compares rows of training on the same data; see `__main__`."""
