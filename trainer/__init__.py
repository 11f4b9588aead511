"""From label shards to a trained model: SEA's and BASIC's losses, supervision and training loop.

So far the leaves: which patches and words enter a step (`sampling`), and both papers' losses (`losses`). CHANGELOG.md
says what is in.
"""
