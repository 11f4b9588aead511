"""Compute a teacher's targets with a running model.

It may import `data`, `export` and what is below.
"""
