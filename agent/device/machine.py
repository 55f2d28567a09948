"""This machine as its profile sees it: the one way in for whoever wants to know what it may spend."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from agent.device.hardware import Hardware, detect
from agent.device.profile import Budget, Profile, SuitedBase
from agent.device.profile_files import load_profiles, origin_of
from agent.device.recognition import Recognised, recognise
from agent.device.sensors.sensor import Place
from agent.device.sensors.watch import Report, Watch, sensors_of
from agent.paths import Home
from agent.thresholds import GovernorSettings


@dataclass(frozen=True, slots=True)
class Answering:
    """How llama.cpp answers.

    Attributes:
        threads: to compute on.
        context: tokens that are held.
        batch: tokens that one pass of the model takes.
        gpu_layers: layers on a graphics processor.
    """

    threads: int
    context: int
    batch: int
    gpu_layers: int


@dataclass(frozen=True, slots=True)
class Machine:
    """A machine and the profile that fits it.

    Attributes:
        hardware: what it is.
        recognised: its profile, and why that one.
        folders: where profiles were looked for beside the built-in ones, those that win last.
        home: the device's state directory, which need not exist.
    """

    hardware: Hardware
    recognised: Recognised
    folders: tuple[Path, ...] = ()
    home: Path = Path()

    @property
    def profile(self) -> Profile:
        """The profile that fits."""
        return self.recognised.profile

    @property
    def budget(self) -> Budget:
        """What training may spend."""
        return self.profile.budget_for(self.hardware)

    @property
    def base(self) -> SuitedBase | None:
        """The largest base that suits; None where the profile knows none for so little memory."""
        return self.profile.base_for(self.hardware)

    @property
    def origin(self) -> Path:
        """The file that the profile is from."""
        return origin_of(self.profile.name, extra=self.folders)

    def training_settings(self) -> dict[str, object]:
        """Give what the profile says about training and the governor as a layer of settings, under the owner's.

        Memory is not among them: in a round it is a limit, in a training alone it bounds what is free.
        """
        return {
            "threads": self.budget.threads,
            "compute": self.profile.training.compute,
            "governor": self.profile.governor_layer(),
        }

    def sense(self) -> tuple[Report, ...]:
        """Ask every sensor once that fits this machine, and give what each said."""
        zones = tuple(self.governor.temperature.zones)
        with Watch(sensors_of(Place(home=self.home, zones=zones))) as watch:
            watch.read()
            return watch.reports

    @property
    def governor(self) -> GovernorSettings:
        """When training pauses, where the owner does not say."""
        return GovernorSettings.model_validate(self.profile.governor_layer())

    def answering(
        self, *, threads: int | None = None, context: int | None = None, gpu_layers: int | None = None
    ) -> Answering:
        """Give how llama.cpp answers here, with what was said on top of what the profile says."""
        plan = self.profile.runtime
        return Answering(
            threads=threads or plan.threads_for(self.hardware),
            context=context or plan.context,
            batch=plan.batch,
            gpu_layers=plan.offloaded if gpu_layers is None else gpu_layers,
        )

    def round_settings(self) -> dict[str, object]:
        """Give the same for rounds, where the charter has the word and the profile only bounds it."""
        plan = self.profile.training
        limits = {"memory_mb": self.budget.memory_mb, "rank": plan.max_rank, "micro_batch": plan.micro_batch}
        return {**self.training_settings(), **limits}


def profile_folders(home: Home) -> tuple[Path, ...]:
    """Give the folders with profiles of others, later ones winning: the machine's, then the device owner's."""
    return (site_profiles(), home.profiles)


def site_profiles() -> Path:
    """Give the folder of profiles for everybody on this machine."""
    if sys.platform == "win32":
        return platformdirs.site_config_path("bramble", appauthor=False) / "profiles"
    return Path("/etc/bramble/profiles")


def this_machine(home: Home, *, root: Path = Path("/")) -> Machine:
    """Look at this machine and find its profile.

    Raises:
        SettingsError: a profile cannot be used; its file, key and what is allowed are in the message.
    """
    folders = profile_folders(home)
    hardware = detect(root=root)
    return Machine(
        hardware=hardware, recognised=recognise(hardware, load_profiles(extra=folders)), folders=folders, home=home.root
    )
