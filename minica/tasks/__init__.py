"""What a training loop trains for: losses, checks of targets, and metrics."""
