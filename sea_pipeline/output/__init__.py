"""Plan, commit, check and mend an output folder, the same way for every kind of rows.

It may import `inputs` and what is below.
"""
