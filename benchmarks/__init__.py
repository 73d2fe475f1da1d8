"""Benchmarks: what the README claims about speed and size, runnable."""
