"""Who does the shards of a stage: this process, or the workers of a cluster. It knows no CLIP and no labels.

It may import `output`, `inputs` and what is below.
"""
