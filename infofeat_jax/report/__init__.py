"""Finished runs as tables for people."""
