"""Multi-view clips rendered from animated 3-D assets."""
