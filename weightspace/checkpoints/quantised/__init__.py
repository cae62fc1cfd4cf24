"""Quantised weights, one file per format, read as the float tensors that they represent."""
