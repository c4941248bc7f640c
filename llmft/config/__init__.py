"""What a run is asked to do: the arguments, how they are read and checked."""
