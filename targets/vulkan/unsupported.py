"""What cannot be generated."""


class Unsupported(Exception):
    """A construct without a counterpart in our shaders; the message names it."""
