"""Make folders of labels from others, by merging several or by selecting images of one.

It may import `labels` and what is below.
"""
