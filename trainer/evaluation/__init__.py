"""Measure what a model says and where its visual tokens lie.

It may import `attach` and what is below.
"""
