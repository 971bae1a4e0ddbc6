"""Tests of what a request does."""
