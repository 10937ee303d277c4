"""Tests of ``raftkv.service``."""
