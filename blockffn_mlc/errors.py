"""The one exception a user is meant to see, and what others say."""


class UserError(Exception):
    """Bad input, described in one sentence: which file, tensor or field, what was expected,
    what was found, what to do. Command lines print it without a traceback and exit with 1."""


def first_line(error: BaseException) -> str:
    """The beginning of what an error says; its type where it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
