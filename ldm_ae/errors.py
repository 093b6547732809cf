"""The two errors that are told in words. Everything else that is raised is a defect of ours and keeps its traceback."""


class UserError(ValueError):
    """A user's mistake: what is wrong, where, and what to do, in one or two lines.

    The command line prints the message alone and exits with status 2.
    """


class RunError(RuntimeError):
    """The work cannot go on though the command was right, such as for a full disk; in one or two lines.

    The command line prints the message alone and exits with status 1.
    """
