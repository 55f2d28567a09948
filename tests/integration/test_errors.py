"""Everything that can stand in the way, as its owner meets it: what happened, what to do, a status of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import gguf
import pytest

from agent.federation.invite import PREFIX, parse_invite
from agent.llm.seedling import SEEDLING_PATH
from tests.integration.community import Community, grown_release, make_community, write_text
from tests.integration.processes import Running, bramble, succeed
from tests.transport.brokers import free_port, mosquitto

pytestmark = pytest.mark.slow


def refused(status: int, *arguments: str | Path, answer: str = "", **options: object) -> str:
    """Run a command that must end with this status and advice, and give what it said."""
    done = bramble(*arguments, answer=answer, **options)  # type: ignore[arg-type]
    assert done.returncode == status, f"status {done.returncode}: {done.stderr}"
    assert "bramble: " in done.stderr
    assert "What to do: " in done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def contents(directory: Path) -> dict[str, str]:
    """Give the hash of every file below a directory."""
    return {
        str(file.relative_to(directory)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in directory.rglob("*")
        if file.is_file()
    }


# --- models ------------------------------------------------------------------------------------------------------


def test_missing_base_is_named(tmp_path: Path) -> None:
    words = refused(21, "hub", "init", "--home", tmp_path / "hub", "--base", tmp_path / "nowhere.gguf")
    assert "nowhere.gguf" in words
    assert not (tmp_path / "hub" / "state.db").exists()


@pytest.mark.parametrize("size", [0, 3, 100, 200_000, SEEDLING_PATH.stat().st_size - 1])
def test_base_that_was_cut_short_is_unreadable(tmp_path: Path, size: int) -> None:
    base = tmp_path / "cut.gguf"
    base.write_bytes(SEEDLING_PATH.read_bytes()[:size])
    assert "cut.gguf" in refused(21, "hub", "init", "--home", tmp_path / "hub", "--base", base)
    assert not (tmp_path / "hub" / "state.db").exists()


def test_text_file_is_no_base(tmp_path: Path) -> None:
    base = tmp_path / "notes.gguf"
    base.write_text("these are notes, not a model\n" * 100)
    assert "notes.gguf" in refused(21, "hub", "init", "--home", tmp_path / "hub", "--base", base)


def test_base_of_an_unknown_architecture_is_unsupported_and_it_says_what_is(tmp_path: Path) -> None:
    base = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(base, arch="mamba")
    writer.add_context_length(512)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    words = refused(22, "hub", "init", "--home", tmp_path / "hub", "--base", base)
    assert "mamba" in words
    assert "llama" in words


# --- text --------------------------------------------------------------------------------------------------------


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """The state directory of a device that has joined nothing."""
    home = tmp_path / "device"
    succeed("init", "--home", home)
    return home


def test_folder_without_text_is_not_added(device: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(31, "data", "add", tmp_path / "empty", "--yes", "--home", device)
    binaries = tmp_path / "binaries"
    binaries.mkdir()
    for index in range(3):
        (binaries / f"photo-{index}.jpg").write_bytes(bytes(range(256)) * 100)
    refused(31, "data", "add", binaries, "--yes", "--home", device)
    refused(31, "data", "add", tmp_path / "nowhere", "--yes", "--home", device)
    assert succeed("data", "list", "--json", "--home", device).strip() == "[]"


@pytest.mark.parametrize("answer", ["n\n", "\n"])
def test_text_is_not_added_without_a_yes(device: Path, tmp_path: Path, answer: str) -> None:
    text = write_text(tmp_path / "text", 0, characters=2000)
    refused(32, "data", "add", text, "--home", device, answer=answer)
    assert succeed("data", "list", "--json", "--home", device).strip() == "[]"


# --- state -------------------------------------------------------------------------------------------------------


def test_commands_before_init_say_so(tmp_path: Path) -> None:
    home = tmp_path / "nothing"
    for arguments in (("status",), ("run",), ("data", "list"), ("chat",), ("hub", "status"), ("hub", "run")):
        refused(11, *arguments, "--home", home)
    refused(11, "join", PREFIX + "AAAA", "--home", home)
    assert not home.exists()


def test_device_without_a_community_cannot_run_or_chat(device: Path) -> None:
    assert "bramble join" in refused(53, "run", "--home", device)
    refused(53, "chat", "--home", device)
    assert '"community": null' in succeed("status", "--json", "--home", device)


def test_init_twice_changes_nothing(device: Path, tmp_path: Path) -> None:
    before = contents(device)
    refused(12, "init", "--home", device)
    refused(12, "hub", "init", "--home", device)
    assert contents(device) == before
    hub = tmp_path / "hub"
    succeed("hub", "init", "--home", hub)
    before = contents(hub)
    refused(12, "hub", "init", "--home", hub)
    refused(12, "init", "--home", hub)
    assert contents(hub) == before


def test_setting_that_does_not_exist_is_named(device: Path) -> None:
    with (device / "settings.toml").open("a") as file:
        file.write("treads = 4\n")
    assert "treads" in refused(16, "run", "--home", device)


# --- joining -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def open_door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Community, Running]]:
    """A hub that runs, and its community's devices, none of which has joined."""
    community = make_community(tmp_path_factory.mktemp("errors") / "community", devices=("ada", "bob", "cyd"))
    with community.hub() as hub:
        hub.wait_for("hub-ready")
        yield community, hub


def test_line_that_is_no_invite_is_told_from_one_that_was_damaged(open_door: tuple[Community, Running]) -> None:
    community, _hub = open_door
    home = community.home("ada").root
    line = community.invite().encode()
    middle = len(line) // 2
    mistyped = line[:middle] + ("A" if line[middle] != "A" else "B") + line[middle + 1 :]
    assert "begins with" in refused(51, "join", "hello", "--yes", "--home", home)
    for damaged in (line[:-9], line[:60], mistyped, line + "AA", PREFIX):
        assert "begins with" not in refused(51, "join", damaged, "--yes", "--home", home)


def test_expired_invite_is_refused(open_door: tuple[Community, Running]) -> None:
    community, _hub = open_door
    home = community.home("ada").root
    expired = community.invite(expires_seconds=-60.0)
    assert "expired" in refused(52, "join", expired.encode(), "--yes", "--home", home)
    # A device whose clock is wrong, or that lies about it, is not even let to the door.
    lying = replace(expired, expires=2**31)
    assert "expired" in refused(52, "join", lying.encode(), "--yes", "--home", home)


def test_invite_is_good_for_as_many_devices_as_it_says_and_again_for_the_same_device(
    open_door: tuple[Community, Running],
) -> None:
    community, hub = open_door
    line = community.invite(uses=1).encode()
    succeed("join", line, "--yes", "--home", community.home("bob").root)
    assert "as often as it may" in refused(52, "join", line, "--yes", "--home", community.home("cyd").root)
    succeed("join", line, "--yes", "--home", community.home("bob").root)
    bob = community.device_id("bob")
    assert [said["device"] for said in hub.all("device-joined")].count(bob) == 1


def test_owner_who_says_no_to_the_charter_has_not_joined(open_door: tuple[Community, Running]) -> None:
    community, hub = open_door
    home = community.home("ada")
    words = refused(52, "join", community.invite().encode(), "--home", home.root, answer="n\n")
    assert "Nothing was sent" in words
    assert community.config.charter.name in words
    assert community.device_id("ada") not in [said["device"] for said in hub.all("device-joined")]
    refused(53, "run", "--home", home.root)


def test_base_that_is_not_the_communitys_is_refused(open_door: tuple[Community, Running], tiny_q8: Path) -> None:
    community, hub = open_door
    home = community.home("ada").root
    words = refused(23, "join", community.invite().encode(), "--yes", "--base", tiny_q8, "--home", home)
    assert community.config.charter.base_sha256[:16] in words
    missing = tiny_q8.with_name("missing.gguf")
    refused(21, "join", community.invite().encode(), "--yes", "--base", missing, "--home", home)
    assert community.device_id("ada") not in [said["device"] for said in hub.all("device-joined")]


def test_broker_that_knows_no_such_password_lets_nobody_in_on_the_invite(open_door: tuple[Community, Running]) -> None:
    community, _hub = open_door
    invite = replace(community.invite(), broker_password="wrong")
    words = refused(52, "join", invite.encode(), "--yes", "--home", community.home("ada").root)
    assert "used up or was taken back" in words
    assert "password" in words


def test_broker_where_nobody_answers_is_named_without_credentials(open_door: tuple[Community, Running]) -> None:
    community, _hub = open_door
    port = free_port()
    invite = replace(community.invite(), broker=f"mqtt://ada:secret-word@127.0.0.1:{port}")
    words = refused(41, "join", invite.encode(), "--yes", "--home", community.home("ada").root)
    assert f"127.0.0.1:{port}" in words
    assert "secret-word" not in words


def test_unencrypted_broker_elsewhere_is_refused(open_door: tuple[Community, Running]) -> None:
    community, _hub = open_door
    invite = replace(community.invite(), broker="mqtt://192.0.2.1:1883")
    refused(43, "join", invite.encode(), "--yes", "--home", community.home("ada").root)


def test_second_hub_on_a_state_directory_is_refused_and_the_first_goes_on(
    open_door: tuple[Community, Running],
) -> None:
    community, hub = open_door
    refused(13, "hub", "run", "--home", community.hub_home.root)
    assert hub.process.poll() is None


# --- running -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Community:
    """A community of one that has joined; nothing runs."""
    community = make_community(tmp_path_factory.mktemp("members") / "community", devices=("ada",))
    with community.hub() as hub:
        hub.wait_for("hub-ready")
        community.join_all()
    return community


def test_second_agent_on_a_state_directory_is_refused_and_the_first_goes_on(members: Community, tmp_path: Path) -> None:
    community = members.copy(tmp_path / "community")
    with community.running("ada") as (hub, ada):
        ada.wait_for("device-ready")
        refused(13, "run", "--home", community.home("ada").root)
        assert '"running": true' in succeed("status", "--json", "--home", community.home("ada").root)
        assert grown_release(hub, 1).name == "promoted"
    assert '"running": false' in succeed("status", "--json", "--home", community.home("ada").root)


def test_device_that_starts_while_the_broker_is_down_waits_and_says_where_it_looks(members: Community) -> None:
    with members.device("ada") as ada:
        said = ada.wait_for("waiting")
        assert "waiting for the broker" in said["text"]
        assert members.config.broker in said["text"]
        status = json.loads(succeed("status", "--json", "--home", members.home("ada").root))
        assert (status["state"], status["connected_to"]) == ("waiting", None)


def test_device_joins_no_second_community(members: Community) -> None:
    home = members.home("ada").root
    before = (home / "state.db").read_bytes()
    other = replace(parse_invite(members.invite().encode()), community=bytes(16))
    words = refused(54, "join", other.encode(), "--yes", "--home", home)
    assert members.config.charter.name in words
    assert "--home" in words
    assert (home / "state.db").read_bytes() == before


def test_base_that_changed_since_joining_is_noticed(members: Community, tmp_path: Path) -> None:
    from agent.federation.store import open_device_store  # noqa: PLC0415 - this test alone looks inside

    community = members.copy(tmp_path / "community")
    base = tmp_path / "base.gguf"
    base.write_bytes(SEEDLING_PATH.read_bytes())
    with open_device_store(community.home("ada")) as store:
        store.save_membership(store.membership.model_copy(update={"base": base}))
    whole = SEEDLING_PATH.read_bytes()
    base.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    refused(23, "run", "--home", community.home("ada").root)
    base.unlink()
    refused(21, "run", "--home", community.home("ada").root)


def test_hub_of_brokers_that_are_down_waits_and_says_where_it_looks(tmp_path: Path) -> None:
    urls = [f"mqtt://hub:secret@127.0.0.1:{free_port()}" for _ in range(2)]
    succeed("hub", "init", "--home", tmp_path / "hub", "--broker", ",".join(urls))
    arguments = ("hub", "run", "--home", tmp_path / "hub", "--events-json")
    with Running(name="hub", arguments=arguments, log=tmp_path / "hub.log") as hub:
        said = hub.wait_for("link", where=lambda found: not found["connected"])
        assert all(url.partition("@")[2] in said["text"] for url in urls)
        assert "secret" not in said["text"]


@pytest.mark.parametrize("protocol", ["auto", "5", "3.1.1"])
def test_mosquitto_that_lets_nobody_in_is_told_from_one_that_is_down(tmp_path: Path, protocol: str) -> None:
    with mosquitto(tmp_path, ["allow_anonymous false"]) as broker:
        succeed("hub", "init", "--home", tmp_path / "hub", "--broker", broker.url)
        environment = {"BRAMBLE_MQTT_PROTOCOL": protocol}
        assert "refused" in refused(42, "hub", "run", "--home", tmp_path / "hub", environment=environment)


def test_port_that_is_taken_is_named(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker:
        succeed("hub", "init", "--home", tmp_path / "hub", "--port", str(broker.port))
        assert str(broker.port) in refused(41, "hub", "run", "--home", tmp_path / "hub")


@pytest.mark.parametrize(
    ("broker", "status"), [("localhost:1883", 16), ("http://127.0.0.1", 16), ("mqtt://192.0.2.1", 43)]
)
def test_brokers_address_that_cannot_be_used_is_refused_before_anything_is_made(
    tmp_path: Path, broker: str, status: int
) -> None:
    refused(status, "hub", "init", "--home", tmp_path / "hub", "--broker", broker)
    assert not (tmp_path / "hub").exists()


# --- full disks --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(directory: Path, size: str) -> Iterator[Path]:
    """Mount a small disk; skips the test, saying so, where that is not allowed."""
    directory.mkdir()
    mounted = os.name == "posix" and os.geteuid() == 0
    mounted = mounted and _done("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(directory))
    if not mounted:
        pytest.skip("a small disk cannot be mounted here: run the tests as root on Linux for this one")
    try:
        yield directory
    finally:
        assert _done("umount", "-l", str(directory))


def _done(*arguments: str) -> bool:
    return subprocess.run(arguments, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("size", ["4k", "24k", "64k"])
@pytest.mark.parametrize("what", [("init",), ("hub", "init")])
def test_init_on_a_full_disk_says_so_and_works_once_there_is_room(
    tmp_path: Path, size: str, what: tuple[str, ...]
) -> None:
    with small_disk(tmp_path / "disk", size) as disk:
        refused(14, *what, "--home", disk / "state")
        assert _done("mount", "-o", "remount,size=64m", str(disk))
        succeed(*what, "--home", disk / "state")


def test_device_whose_disk_fills_up_says_so_and_completes_the_round_once_there_is_room(
    members: Community, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "256m") as disk:
        community = members.copy(disk / "community")
        filler = disk / "filler"
        with community.hub() as hub:
            hub.wait_for("hub-ready")
            free = os.statvfs(disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 200_000))
            with community.device("ada") as ada:
                ada.wait_for("fetching", "failed")
                status = ada.wait_ended()
            assert status == 14
            filler.unlink()
            with community.device("ada"):
                assert grown_release(hub, 1).name == "promoted"
        assert community.counted(1) == community.everybody()


def test_hub_whose_disk_fills_up_says_so_and_completes_the_round_once_there_is_room(
    members: Community, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", "192m") as disk:
        community = members.copy(tmp_path / "community")
        shutil.move(community.hub_home.root, disk / "hub")
        community.hub_home.root.symlink_to(disk / "hub")
        filler = disk / "filler"
        with community.running("ada") as (hub, ada):
            ada.wait_for("training")
            free = os.statvfs(disk)
            filler.write_bytes(bytes(free.f_bavail * free.f_frsize - 50_000))
            status = hub.wait_ended()
            words = hub.log.read_text()
        assert status == 14
        assert "What to do: Free some space" in words
        assert "Traceback" not in words
        filler.unlink()
        with community.running("ada") as (hub, _ada):
            assert grown_release(hub, 1).name == "promoted"
        assert community.counted(1) == community.everybody()
