"""This computer: what it is, how fast it is, and what follows for a run."""
