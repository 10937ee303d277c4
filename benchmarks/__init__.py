"""Benchmarks of raftkv. Each is run with ``python -m benchmarks.NAME`` and prints what it measured, and on what."""
