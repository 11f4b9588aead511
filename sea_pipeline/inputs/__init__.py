"""What is read: images from every kind of source, captions, word lists.

It may import `core` and `storage`.
"""
