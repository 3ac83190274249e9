"""Models: names of pretrained checkpoints, and one file per network that a paper brings along."""
