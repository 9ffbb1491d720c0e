"""Metrics of pictures and clips: inputs are tensors in [0, 1], outputs tensors or floats. The data range is 1."""
