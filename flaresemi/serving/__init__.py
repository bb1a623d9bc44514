"""A warm server: models are loaded once, and other programs ask it for predictions."""
