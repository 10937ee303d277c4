"""Consensus: knows bytes, indexes and terms; nothing of keys or HTTP. Sans-IO: calls in, effects out."""
