"""The engine: a merge from files to a file, planned from headers, streamed in pieces, resumable at any moment."""
