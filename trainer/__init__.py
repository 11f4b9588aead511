"""From label shards to a trained model: SEA's and BASIC's losses, supervision and training loop.

Not here yet; CHANGELOG.md says what is.
"""
