"""Tests of `agent.llm`."""
