"""How every figure looks, and the plain ones."""
