"""Writes and reads a teacher's targets as files.

It may import `sea_pipeline` alone.
"""
