"""Tests of `agent.training`."""
