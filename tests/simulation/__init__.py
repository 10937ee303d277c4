"""Deterministic simulation: the real code on virtual time, network and disk."""
