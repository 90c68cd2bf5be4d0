"""Training: the step, the ways of running it on many devices, the loop, checkpoints."""
