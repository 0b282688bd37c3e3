"""Benchmarks: runtimes' sessions, measuring, statistics, the host, the report."""
