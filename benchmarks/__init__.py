"""Benchmarks: measurement, statistics, the host, reports, latency tables."""
