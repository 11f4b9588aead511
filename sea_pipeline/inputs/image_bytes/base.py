"""Define the error that all formats share."""


class DamagedError(ValueError):
    """A picture's own data is damaged; the message says which part."""
