"""Golden files: what a release writes, byte for byte. ``python -m tests.golden.update`` renews them."""
