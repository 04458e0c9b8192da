"""Publishing: cards, verification, push and pull."""
