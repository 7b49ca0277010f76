"""Bytes: what a configuration will hold in each tier, and what processes really hold."""
