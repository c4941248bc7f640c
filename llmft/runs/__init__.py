"""The folder of a run: what ran, what came of it, and the model."""
