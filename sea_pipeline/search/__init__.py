"""The exact top-n words by cosine; it knows vectors and no images.

It may import `core` and `storage`.
"""
