"""Training by recipes."""
