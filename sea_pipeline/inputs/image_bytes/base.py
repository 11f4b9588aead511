"""What the formats share."""


class DamagedError(ValueError):
    """A picture's own data is damaged; the message says what of it."""
