"""Orders meet data: the loader that a training script sees."""
