"""Test kits for what plugs into Bramble, usable from any test runner.

A package that brings a merge rule, a source or a sensor calls the check in its own tests::

    from agent.testing import check_merge_rule

    def test_my_rule_keeps_its_promises() -> None:
        check_merge_rule(MyRule())

Each check returns nothing, or raises :class:`BrokenPromiseError` (an ``AssertionError``) that says which promise of the
protocol is broken and how.
"""

from agent.testing.merge_rule import check_merge_rule
from agent.testing.promises import BrokenPromiseError
from agent.testing.samples import SMALL_SHAPES, random_adapter, random_delta
from agent.testing.sensor import check_sensor
from agent.testing.source import check_source

__all__ = [
    "SMALL_SHAPES",
    "BrokenPromiseError",
    "check_merge_rule",
    "check_sensor",
    "check_source",
    "random_adapter",
    "random_delta",
]
