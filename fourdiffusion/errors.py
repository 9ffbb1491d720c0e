"""The one exception that a user may see."""


class UserError(Exception):
    """Something that a file, a setting or a command caused: one line that names the value and the remedy.

    The command line prints it as `error: ...` and exits with code 2. Wrong arguments of functions are ValueError.
    """


def check_ranges(ranges: dict[str, tuple[float, float, float]]) -> None:
    """UserError for the first of {setting: (value, low, high)} that lies outside its range, ends included."""
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"{name}={value}: give {low} to {high}")
