"""Labels and training runs as one HTML file, and figures for papers.

It may import `labels` and what is below.
"""
