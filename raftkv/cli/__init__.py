"""Commands for people and for containers."""
