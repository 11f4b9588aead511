"""What a terminal shows of results.

It may import `cli.terminal`, and for types whatever is shown.
"""
