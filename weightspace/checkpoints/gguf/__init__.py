"""GGUF, the file format of llama.cpp: headers, block types, and the names and layouts of its families of models."""
