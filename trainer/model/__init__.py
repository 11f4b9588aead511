"""A model folder and the model that trains: made from parts, loaded, tokenised for, saved.

It may import `losses`, `words`, `recipes` and what is below.
"""
