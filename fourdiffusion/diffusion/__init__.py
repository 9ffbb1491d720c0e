"""4DM: the multi-view UNet, its motion layers, the encoders, sampling and distillation."""
