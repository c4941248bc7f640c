"""From texts to token ids, examples and batches."""
