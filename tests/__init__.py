"""Tests of `agent`, in the same tree."""
