"""Tests of ``raftkv.cli``."""
