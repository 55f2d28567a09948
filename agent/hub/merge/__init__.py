"""Merge rules: how many updates become one next adapter."""
