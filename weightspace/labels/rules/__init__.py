"""Decision rules, one file per structure of the label space."""
