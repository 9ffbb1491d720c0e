"""Clips on disk, the synthetic world and the readers of other projects' data."""
