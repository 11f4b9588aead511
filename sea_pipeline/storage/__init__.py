"""Files that are whole or absent, here or in a store elsewhere: paths, locks, hashes, JSON, Parquet.

It may import `core`.
"""
