"""The one exception a user is meant to see."""


class UserError(Exception):
    """Bad input, described in one sentence: which file, tensor or field, what was expected,
    what was found, what to do. Command lines print it without a traceback and exit with 1."""
