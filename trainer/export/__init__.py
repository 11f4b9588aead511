"""Export a trained model as a folder for other programs.

It may import `model` and what is below.
"""
