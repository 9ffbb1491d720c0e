"""The one exception that a user may see."""


class UserError(Exception):
    """Something that a file, a setting or a command caused: one line that names the value and the remedy.

    The command line prints it as `error: ...` and exits with code 2. Wrong arguments of functions are ValueError.
    """
