"""Make, store, read and measure the words of every patch, which is what SEA is about.

It may import `execution` and what is below.
"""
