"""Documentation pages generated from the library: methods, commands, public names."""
