"""Tokenizers that differ: rows of embeddings and heads are moved by token, so that each is merged with its like."""
