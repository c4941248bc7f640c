"""Losses, the one Trainer subclass, what hooks into it, and checkpoints."""
