"""Measures of one model: what its visual tokens are near, and what the right photo is worth to it.

It may import `data` and what is below.
"""
