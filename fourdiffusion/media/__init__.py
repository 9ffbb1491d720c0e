"""Read and write videos and pictures."""
