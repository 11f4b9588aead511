"""The ground: errors, settings, extras, devices, threads and progress.

It may import nothing else of ours.
"""
