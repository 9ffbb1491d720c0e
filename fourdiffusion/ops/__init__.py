"""Performance-critical ops: one signature each, with a torch backend and faster backends of equal results."""
