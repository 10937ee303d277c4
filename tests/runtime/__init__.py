"""Tests of ``raftkv.runtime``."""
