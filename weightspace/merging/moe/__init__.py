"""Mixtures of experts from dense models: recipes, architectures, routers, and the plan that writes them."""
