"""Turn conversations, photos, labels and targets into batches.

It may import `model` and what is below.
"""
