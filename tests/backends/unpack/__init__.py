"""Tests of what takes images apart."""
