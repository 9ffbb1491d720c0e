"""The hot operations: one signature each, a torch twin and faster implementations that give the same numbers."""
