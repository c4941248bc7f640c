"""Train, validation and test, and rows that are there twice."""
