"""A teacher's targets computed by a running model.

It may import `data`, `export` and what is below.
"""
