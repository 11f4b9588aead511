"""Folders of labels made of other ones: several become one, or some of the images of one.

It may import `labels` and what is below.
"""
