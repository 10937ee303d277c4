"""Tests of ``raftkv.consensus``."""
