"""Plans: what a merge will do, tensor by tensor, as data."""
