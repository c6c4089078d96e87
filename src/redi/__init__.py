"""redi: trajectory retrieval for diffusion models."""
