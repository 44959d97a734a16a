"""Features: the only code that turns raw rows into tensors, in training and in serving alike."""
