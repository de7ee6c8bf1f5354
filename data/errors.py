"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Bad input: what was found, what was expected, where, and what to do, in one message.

    The command line prints it without a traceback and exits with status 2. Everything else that is raised is a
    defect of the program and keeps its traceback.
    """
