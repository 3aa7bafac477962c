"""Training: losses, metrics, optimiser, the compiled step, the loop, checkpoints and logs."""
