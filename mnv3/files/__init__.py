"""Weights as files: read, checked, fetched, written."""
