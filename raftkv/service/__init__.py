"""What a node can do for a caller."""
