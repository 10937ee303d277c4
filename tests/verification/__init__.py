"""Tests of ``raftkv.verification``."""
