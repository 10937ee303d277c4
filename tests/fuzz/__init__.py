"""Stateful fuzzers of real nodes: strangers at the peer port, and hostile clients at the client port."""
