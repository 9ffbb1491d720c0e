"""Measures of pictures and clips: tensors in [0, 1] in, tensors or floats out. The data range is always 1."""
