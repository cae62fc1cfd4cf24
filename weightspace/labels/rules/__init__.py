"""How the least expected cost is found: one file a structure of the label space, all with the same two methods."""
