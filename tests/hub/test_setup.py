from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.cli.hub import hub
from agent.errors import AdapterError, AlreadyInitialisedError, MergeError
from agent.governance.charter import Charter, RobustRules
from agent.hub.setup import HubPlan, create_hub, describe_base, make_invite
from agent.hub.store import HubStore, open_store
from agent.paths import Home
from tests.hub.world import make_world
from tests.models import write_model


@pytest.mark.parametrize("step", ["create_tables", "add_release", "save_config"])
async def test_hub_that_was_killed_while_it_was_made_can_be_made_again(
    tmp_path: Path, tiny_q8: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def power_cut(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(HubStore, step, power_cut)
        patched.setattr(Path, "unlink", lambda _path, **_options: None)  # nobody tidies up after a power cut
        with pytest.raises(KeyboardInterrupt):
            make_world(tmp_path / "hub", tiny_q8)
    assert not (tmp_path / "hub" / "state.db").exists()
    made = make_world(tmp_path / "hub", tiny_q8)
    with open_store(made.home) as store:
        assert [row.manifest.number for row in store.releases()] == [0]


async def test_hub_is_not_made_over_another(tmp_path: Path, tiny_q8: Path) -> None:
    before = make_world(tmp_path / "hub", tiny_q8).config
    with pytest.raises(AlreadyInitialisedError):
        make_world(tmp_path / "hub", tiny_q8)
    with open_store(Home(tmp_path / "hub")) as store:
        assert store.config == before


def test_an_invite_carries_the_devices_own_account_at_the_broker(tmp_path: Path, tiny_q8: Path) -> None:
    charter = Charter(name="street", rank=4, **describe_base(tiny_q8))
    hubs, theirs = "mqtt://hub:secret@localhost:1883", "mqtt://device:public@localhost:1883"
    plan = HubPlan(name="street", base=tiny_q8, broker=hubs, device_broker=theirs, last_round=None, charter=charter)
    create_hub(Home(tmp_path / "hub"), plan)
    assert make_invite(Home(tmp_path / "hub"), uses=1, expires_seconds=60).broker == theirs


def init_hub(directory: Path, *options: object) -> tuple[str, ...]:
    """Make a hub by its command; give what its charter lets devices change."""
    words = [str(option) for option in ("init", "--home", directory, *options)]
    assert CliRunner().invoke(hub, words, catch_exceptions=False).exit_code == 0
    with open_store(Home(directory)) as store:
        return store.config.charter.target_modules


def test_a_community_changes_the_layers_that_its_base_has(tmp_path: Path, tiny_q8: Path) -> None:
    llama = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert init_hub(tmp_path / "llama", "--base", tiny_q8) == llama
    phi = write_model(tmp_path / "phi.gguf", architecture="phi3")
    assert init_hub(tmp_path / "phi", "--base", phi) == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert init_hub(tmp_path / "some", "--base", phi, "--targets", "qkv_proj,o_proj") == ("qkv_proj", "o_proj")


def test_layers_that_the_base_has_not_are_refused_with_those_that_it_has(tmp_path: Path, tiny_q8: Path) -> None:
    with pytest.raises(AdapterError, match="no linear layers named qkv_proj") as caught:
        init_hub(tmp_path / "hub", "--base", tiny_q8, "--targets", "q_proj,qkv_proj")
    assert "k_proj" in caught.value.advice
    assert not (tmp_path / "hub").exists()


def test_the_charter_says_how_updates_are_merged_and_compressed(tmp_path: Path, tiny_q8: Path) -> None:
    options = ("--merge-rule", "stack", "--outer", "nesterov", "--compression", "topk", "--density", "0.2")
    init_hub(tmp_path / "hub", "--base", tiny_q8, *options)
    init_hub(tmp_path / "plain", "--base", tiny_q8)
    with open_store(Home(tmp_path / "hub")) as store, open_store(Home(tmp_path / "plain")) as plain:
        charter, usual = store.config.charter, plain.config.charter
    assert (charter.merge_rule, charter.outer.name) == ("stack", "nesterov")
    assert (charter.compression, charter.density) == ("topk", 0.2)
    fields = {name: Charter.model_fields[name].default for name in ("merge_rule", "outer", "compression", "density")}
    assert {name: getattr(usual, name) for name in fields} == fields


def test_the_charter_says_what_keeps_single_devices_from_steering_a_merge(tmp_path: Path, tiny_q8: Path) -> None:
    init_hub(tmp_path / "hub", "--base", tiny_q8, "--robust", "multi-krum", "--mixing", "--hostile", "0.3")
    init_hub(tmp_path / "plain", "--base", tiny_q8)
    with open_store(Home(tmp_path / "hub")) as store, open_store(Home(tmp_path / "plain")) as plain:
        chosen, usual = store.config.charter.robust, plain.config.charter.robust
    assert (chosen.name, chosen.mixing, chosen.hostile) == ("multi-krum", True, 0.3)
    assert usual == RobustRules()


def test_an_order_statistic_is_refused_where_the_rule_averages_no_numbers(tmp_path: Path, tiny_q8: Path) -> None:
    with pytest.raises(MergeError, match="stack does not average numbers"):
        init_hub(tmp_path / "hub", "--base", tiny_q8, "--merge-rule", "stack", "--robust", "median")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(("rule", "moments"), [("stack", "fresh"), ("ffa", "kept"), (None, "kept")])
def test_devices_keep_moments_where_the_rule_leaves_the_factors_what_they_are(
    tmp_path: Path, tiny_q8: Path, rule: str | None, moments: str
) -> None:
    init_hub(tmp_path / "hub", "--base", tiny_q8, *(("--merge-rule", rule) if rule else ()))
    with open_store(Home(tmp_path / "hub")) as store:
        assert store.config.charter.training.moments == moments


@pytest.mark.parametrize(
    ("options", "target"),
    [((), 3), (("--wanted", 10), 10), (("--wanted", 10, "--target", 4), 4), (("--wanted", 1), 2), (("--quorum", 5), 5)],
)
def test_a_round_ends_with_as_many_updates_as_devices_were_wanted_for_it(
    tmp_path: Path, tiny_q8: Path, options: tuple[object, ...], target: int
) -> None:
    init_hub(tmp_path / "hub", "--base", tiny_q8, *options)
    with open_store(Home(tmp_path / "hub")) as store:
        assert store.config.charter.rounds.target == target


def test_a_merge_rule_that_is_not_installed_is_refused_with_those_that_are(tmp_path: Path, tiny_q8: Path) -> None:
    with pytest.raises(MergeError, match=r"no merge rule 'magic' \(installed: .*stack"):
        init_hub(tmp_path / "hub", "--base", tiny_q8, "--merge-rule", "magic")
    assert not (tmp_path / "hub").exists()
