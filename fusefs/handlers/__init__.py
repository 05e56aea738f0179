"""Requests of the kernel to calls: decode, call, encode. One file for each source of requests."""
