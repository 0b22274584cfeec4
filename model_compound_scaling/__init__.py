"""Stage 1: networks, checkpoints, training and the compound-scaling search."""
