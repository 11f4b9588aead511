"""Makes, loads and saves a model folder and the model that trains, and tokenises for it.

It may import `losses`, `words`, `recipes` and what is below.
"""
