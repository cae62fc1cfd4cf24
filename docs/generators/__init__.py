"""Pages of the documentation that are generated from the library: methods, commands, public names."""
