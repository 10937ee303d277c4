"""Tests of ``raftkv.http``."""
