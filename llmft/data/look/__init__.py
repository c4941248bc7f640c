"""What can be told about data before training."""
