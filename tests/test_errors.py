from __future__ import annotations

import re

import agent.errors
import agent.transport.packets
from agent.errors import BrambleError, ProtocolError, error_classes


def test_every_error_has_a_code_and_an_exit_status_of_its_own() -> None:
    classes = error_classes().values()
    assert len({cls.code for cls in classes}) == len(classes)
    assert len({cls.exit_status for cls in classes}) == len(classes)
    assert len(classes) == len([c for c in vars(agent.errors).values() if isinstance(c, type)])


def test_exit_statuses_stay_clear_of_the_shells_own() -> None:
    assert all(0 < cls.exit_status < 126 and cls.exit_status != 2 for cls in error_classes().values())


def test_the_tree_in_the_docstring_is_the_tree_of_the_classes() -> None:
    drawn = dict(re.findall(r"(\w+Error)\s+(\d+)$", agent.errors.__doc__ or "", re.MULTILINE))
    assert drawn == {cls.__name__: str(cls.exit_status) for cls in error_classes().values()}


def test_an_error_reads_as_what_happened() -> None:
    assert str(BrambleError("the disk is full", advice="free some")) == "the disk is full"


def test_a_rooms_private_error_does_not_take_the_place_of_the_one_it_refines() -> None:
    assert issubclass(agent.transport.packets.BadVersionError, ProtocolError)
    assert error_classes()["protocol"] is ProtocolError
