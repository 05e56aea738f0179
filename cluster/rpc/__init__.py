"""Connections between processes: frames, requests and replies, bulk bodies, and the session with the manager."""
