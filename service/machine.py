"""What this process may use of the machine: CPU cores, memory and GPUs."""

import os
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """By affinity, and by the control group's quota rounded up. Never the host's count."""
    cores = len(os.sched_getaffinity(0))
    quota = cpu_quota(_CGROUP)
    return cores if quota is None else max(1, min(cores, -int(-quota // 1)))


def cpu_quota(cgroup: Path) -> float | None:
    """Cores' worth of CPU time that the control group grants (version 2, else 1); None: no limit."""
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota = (cgroup / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (cgroup / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    return None if quota in ("max", "-1") else int(quota) / int(period)


def available_memory(cgroup: Path = _CGROUP, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that can be had without swapping: of the machine, or of the control group where that is less.

    What a control group holds of files counts as free, as the kernel gives it up first. None: it cannot be told.
    """
    found = []
    try:
        lines = dict(line.split(":") for line in meminfo.read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        pass
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        files = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        if limit != "max":
            found.append(int(limit) - used + int(files["inactive_file"]))
    except (OSError, KeyError, ValueError):
        pass
    return min(found, default=None)


def cuda_devices() -> list[str]:
    """What CUDA_VISIBLE_DEVICES leaves of the driver's devices, where the installed onnxruntime can use them."""
    try:
        distribution("onnxruntime-gpu")
    except PackageNotFoundError:
        return []
    if Path("/dev/dxg").exists():  # WSL shows one device, whatever it is
        return ["0"]
    numbers = sorted(int(path.name[6:]) for path in Path("/dev").glob("nvidia[0-9]*"))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in numbers]
    return [device.strip() for device in visible.split(",") if device.strip() and device.strip() != "-1"]
