"""raftkv: a strongly consistent key-value service over HTTP, built on Raft."""

__version__ = "0.1.0"
