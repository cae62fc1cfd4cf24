"""Out-of-core merging of checkpoint files."""
