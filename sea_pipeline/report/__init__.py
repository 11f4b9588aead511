"""Show labels and training runs in one HTML file, and draw figures for papers.

It may import `labels` and what is below.
"""
