from __future__ import annotations

from pathlib import Path

import pytest

from agent.native.library import builds_for, library, open_build, processor_flags

AVX2 = frozenset(["abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "sse4_2"])


def test_the_best_build_that_a_processor_can_run_comes_first() -> None:
    avx512 = AVX2 | frozenset(["avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"])
    assert builds_for("x86_64", avx512) == ("x86-64-v4", "x86-64-v3", "x86-64")
    assert builds_for("AMD64", AVX2) == ("x86-64-v3", "x86-64")
    assert builds_for("x86_64", AVX2 - {"fma"}) == ("x86-64",)
    assert builds_for("aarch64", frozenset()) == ("generic",)


def test_features_are_those_that_the_system_tells_of(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 fma\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    assert processor_flags(tmp_path / "cpuinfo") == {"fpu", "avx2", "fma"}
    assert processor_flags(tmp_path / "none") == frozenset()


def test_what_is_no_build_of_this_version_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "broken.so").write_bytes(b"\x7fELF and no more")
    assert open_build(tmp_path / "broken.so") is None
    assert open_build(tmp_path / "missing.so") is None


def test_owners_can_switch_the_kernels_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRAMBLE_NATIVE", "0")
    assert library() is None
