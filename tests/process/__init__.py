"""Tests with real node processes."""
