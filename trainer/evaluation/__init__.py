"""Measure what a model says and where its visual tokens lie.

It may import `data`, `export` and what is below.
"""
