"""What a model has learnt: metrics, analyses of the papers, questions, the public harnesses.

It may import `data`, `export` and what is below.
"""
