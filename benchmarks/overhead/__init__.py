"""What recording adds to a training."""
