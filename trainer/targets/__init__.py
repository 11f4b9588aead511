"""A teacher's targets as files: the contract, written and read.

It may import `sea_pipeline` alone.
"""
