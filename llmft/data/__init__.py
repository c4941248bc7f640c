"""From a file, a hub name or an asset to token ids.

``read`` opens user data, ``splits`` makes train, validation and test of it,
``tokenize`` turns text into ids, ``collate`` makes batches.
"""
