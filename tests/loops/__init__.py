"""Tests of what decides when."""
