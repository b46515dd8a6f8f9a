"""The exception whose message is meant for the user."""


class UserError(Exception):
    """A mistake that the user can correct. The message says where it is, what was found and what to do.

    The command line prints it without a traceback and exits with status 1.
    """
