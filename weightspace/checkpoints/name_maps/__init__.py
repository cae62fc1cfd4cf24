"""Name maps: one network under the names and layouts of two programs, given as data."""
