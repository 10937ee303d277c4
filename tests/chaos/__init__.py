"""Tests of ``raftkv.chaos``."""
