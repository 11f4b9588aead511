"""An output folder: planned, done, missing, damaged; the same for every kind of rows.

It may import `inputs` and what is below.
"""
