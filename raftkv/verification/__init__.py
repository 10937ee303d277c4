"""Checking what clients saw of a cluster: histories of operations, and whether they are linearizable."""
