"""A run: its folder, its trainer, its checkpoints, its report.

It may import all other rooms.
"""
