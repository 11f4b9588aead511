"""Conversations, photos, labels and targets to batches.

It may import `model` and what is below.
"""
