"""Finished folders on the Hugging Face hub: pushed as datasets that others can look at, and pulled again.

It may import every room but `cli`.
"""
