"""Tests of the backends, each against the real outside thing where it can be had."""
