"""A whole cluster on one machine: node processes, the links between them, and a way to break both on purpose."""
