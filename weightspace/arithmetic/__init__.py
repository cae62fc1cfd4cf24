"""Networks combined element by element: what means, straight lines and merges have in common."""
