"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can put right. The message says where, what was found and what to do.

    The command line prints it without a traceback and exits with status 1.
    """
