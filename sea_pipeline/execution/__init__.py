"""Run the shards of any stage, in this process or on the workers of a cluster. It knows no CLIP and no labels.

It may import `output`, `inputs` and what is below.
"""
