"""Training of 4DM (paper section 3): settings, one step, the loop."""
