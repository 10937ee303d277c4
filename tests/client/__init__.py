"""Tests of ``raftkv.client``."""
