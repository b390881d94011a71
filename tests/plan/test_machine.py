"""Limits of control groups, and devices, from files and programs that the tests make up."""

import os
import sys

import pytest

from halfbyte.plan import machine
from halfbyte.plan.machine import cgroup_memory, cuda_devices, this_machine


def _write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(str(text))


def test_this_machine_has_memory_and_cores():
    here = this_machine(cuda=False)
    assert here.cores >= 1 and here.system
    if sys.platform == "linux":
        assert 0 < here.available_bytes <= here.total_bytes
    assert set(here.to_json()) >= {"total_bytes", "available_bytes", "limit_bytes", "cores", "cuda"}


def test_no_limit(tmp_path):
    _write(tmp_path, memory__max="max", memory__current=5)
    assert cgroup_memory(tmp_path, tmp_path / "absent") == (None, None)


def test_version_two_takes_the_group_that_binds_tightest(tmp_path):
    own = tmp_path / "own"
    own.write_text("0::/parent/child\n")
    root = tmp_path / "cgroup"
    _write(root, memory__max="max", memory__current=0)
    _write(root / "parent", memory__max=4_000, memory__current=1_000)
    _write(root / "parent" / "child", memory__max=9_000, memory__current=500)
    assert cgroup_memory(root, own) == (4_000, 1_000)


def test_pages_of_files_that_can_go_do_not_count_as_used(tmp_path):
    _write(tmp_path, memory__max=4_000, memory__current=3_000, memory__stat="anon 400\ninactive_file 2500\n")
    assert cgroup_memory(tmp_path, tmp_path / "absent") == (4_000, 500)


def test_version_one(tmp_path):
    own = tmp_path / "own"
    own.write_text("12:memory:/docker/abc\n3:cpu,cpuacct:/x\n")
    group = {"memory__usage_in_bytes": 700, "memory__stat": "total_inactive_file 200\n"}
    _write(tmp_path / "memory" / "docker" / "abc", memory__limit_in_bytes=2_000, **group)
    _write(tmp_path / "memory", memory__limit_in_bytes=9223372036854771712, memory__usage_in_bytes=0)
    assert cgroup_memory(tmp_path, own) == (2_000, 500)


def test_the_limit_of_the_container_bounds_what_is_available(monkeypatch):
    monkeypatch.setattr(machine, "cgroup_memory", lambda: (3 * 10**8, 10**8))
    monkeypatch.setattr(machine, "_free_memory", lambda: 10**10)
    assert this_machine(cuda=False).available_bytes == 2 * 10**8


@pytest.mark.skipif(os.name == "nt", reason="needs a shell script in the place of nvidia-smi")
@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("echo 'Tesla T4, 15360, 15000'; echo 'Odd, name, 100, 50'", ["Tesla T4", "Odd, name"]),
        ("echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9", []),
        ("echo 'Something [N/A], [N/A], [N/A]'", []),
    ],
)
def test_devices_are_those_that_nvidia_smi_lists(script, names, tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    devices = cuda_devices()
    assert [device.name for device in devices] == names
    if names:
        assert devices[0].total_bytes == 15360 * 2**20


def test_no_nvidia_smi_no_devices(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cuda_devices() == ()
