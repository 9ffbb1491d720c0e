"""Data preparation: the verbs `data ...`, from assets to training data."""
