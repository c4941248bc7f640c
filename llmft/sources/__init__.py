"""Where models and data come from: the hub, its cache, and wheels of the index."""
