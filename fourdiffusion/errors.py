"""Errors shown to the user as one line, and the end of a run by a signal."""

import signal


class UserError(Exception):
    """An error of a file, a setting or a command: one line that names the value and the remedy.

    The command line prints it as `error: ...` and exits with code 2. Wrong arguments of functions are ValueError.
    """


class Terminated(SystemExit):
    """A signal such as SIGTERM ended the run after it saved its state. The exit code is 128 + the signal number."""

    def __init__(self, signal_number: int):
        super().__init__(128 + signal_number)
        self.signal_number = signal_number

    def __str__(self) -> str:
        return (
            f"stopped by {signal.Signals(self.signal_number).name}: run the same command again to resume a run "
            "from its last checkpoint"
        )


def check_ranges(ranges: dict[str, tuple[float, float, float]]) -> None:
    """Raise UserError for the first of {setting: (value, low, high)} outside its range, ends included."""
    for name, (value, low, high) in ranges.items():
        if not low <= value <= high:
            raise UserError(f"{name}={value}: give {low} to {high}")
