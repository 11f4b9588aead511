"""Print results in a terminal.

It may import `cli.terminal`, and for types whatever is shown.
"""
