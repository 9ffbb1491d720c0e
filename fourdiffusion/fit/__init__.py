"""The 4D stage (paper section 4): settings, one step, the loop."""
