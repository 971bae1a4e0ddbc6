"""Tests of the daemon as a whole, on real parts."""
