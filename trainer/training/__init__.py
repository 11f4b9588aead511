"""Train a model, which makes a run's folder, trainer, checkpoints and report.

It may import all other rooms.
"""
