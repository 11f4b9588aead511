"""Push finished folders to the Hugging Face hub as datasets that others can look at, and pull them again.

It may import every room but `cli`.
"""
