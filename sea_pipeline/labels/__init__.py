"""What SEA is about: words for every patch, made, kept, read and measured.

It may import all rooms but `report` and `cli`.
"""
