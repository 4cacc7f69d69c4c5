"""Published checkpoints as weights of the encoders here: safe reading, names by format, and the conversion."""
