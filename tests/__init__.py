"""Tests of raftkv, mirroring its packages."""
