from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from agent.federation.messages import CharterNotice
from agent.governance.charter import Charter, RoundRules, TrainingPlan


def charter(**over: object) -> Charter:
    fields = {"name": "street", "base_name": "seedling", "base_sha256": "0" * 64, "base_bytes": 1}
    return Charter.model_validate({**fields, **over})


def test_a_charter_crosses_the_wire_unchanged() -> None:
    notice = CharterNotice(charter=charter(rank=4))
    assert CharterNotice.decode(notice.encode()) == notice


def test_a_charter_from_before_moments_could_be_kept_means_what_it_meant() -> None:
    older = charter().model_dump(mode="json")
    for name in ("moments", "schedule"):
        del older["training"][name]
    read = Charter.model_validate_json(json.dumps(older))
    assert (read.training.moments, read.training.schedule) == ("fresh", "cosine")
    assert Charter.model_validate_json(read.model_dump_json()) == read
    assert read.model_copy(update={"training": TrainingPlan()}) == charter()


def test_a_target_below_the_quorum_is_a_contradiction() -> None:
    with pytest.raises(ValidationError, match="below quorum"):
        RoundRules(quorum=3, target=2)


@pytest.mark.parametrize("over", [{"base_sha256": "zz"}, {"rank": 0}, {"compression": "zip"}, {"unknown": 1}])
def test_a_charter_with_a_value_outside_its_range_is_refused(over: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        charter(**over)
