"""Benchmarks: each figure beside a peer or a limit, in the same run, on servers of its own."""
