"""Make, store, read and measure the words of every patch, which is what SEA is about.

It may import all rooms but `report` and `cli`.
"""
