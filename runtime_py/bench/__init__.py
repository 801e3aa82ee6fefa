"""Benchmarks of an artifact on this machine."""
