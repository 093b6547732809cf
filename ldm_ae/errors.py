"""The one error class for a user's mistake."""


class UserError(ValueError):
    """What is wrong, where, and what to do, in one or two lines.

    The command line prints the message alone and exits with status 2. Everything else that is raised is a defect of
    ours and keeps its traceback.
    """
