"""Tests of ``raftkv.dev``."""
