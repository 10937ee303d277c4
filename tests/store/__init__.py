"""Tests of ``raftkv.store``."""
