"""What a user can do something about, where no built-in exception says it."""


class ExpectedError(RuntimeError):
    """An error whose message is meant for the user: programs show it in one line, without a traceback."""
