"""From a file, a hub name or an asset to token ids.

``read`` opens user data, ``split`` makes train, validation and test of it, ``look``
says what is in it, ``tokens`` makes examples and batches.
"""
