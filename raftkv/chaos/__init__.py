"""Breaks a running cluster on purpose, and checks that what clients saw could still have happened on one copy."""
