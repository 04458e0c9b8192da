"""Weights of other frameworks, and back."""
