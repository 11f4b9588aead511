"""What a training run is asked for, and the rows of the papers' tables.

It may import `sea_pipeline` alone.
"""
