"""Other kernels: `lab/run test --kernel 6.1` runs tests on the one that a Debian release has.

The package's kernel is booted by qemu, with this host's own files as its root: read
over 9p, and written to memory only, so that the machine has the same Python, project
and tools, and leaves no trace. With KVM a boot takes some seconds, emulated some tens.
"""

import gzip
import lzma
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.bpf import build
from lab.debian import CACHE, mirror
from lab.node import REPOSITORY, run

SUITES = {"6.1": "bookworm", "6.12": "trixie"}
# Its two processors are busy for long, so nobody shall wait for the end to see what fails.
DEFAULT_TESTS = ("-q", "-rfEs", "--at-once", "-n", "2", "tests/golden", "tests/bpf")
BOOT_TIMEOUT_S = 7200  # an emulated processor has a tenth of the speed
_EXIT = "l3dsr-exit:"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_DEFAULT_MIRROR = "http://deb.debian.org/debian"
# What the first steps need; all else is loaded by modprobe once the root is there.
_MODULES = ("virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_rng")
_DIRECTORIES = ("bin", "dev", "modules", "proc", "host", "memory", "root")

_INIT = """\
#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs dev /dev
mount -t proc proc /proc
for module in $(cat /modules/order); do insmod /modules/$module.ko || echo "no $module"; done
mount -t 9p -o ro,trans=virtio,version=9p2000.L,cache=loose,msize=524288 host /host &&
mount -t tmpfs -o mode=755 memory /memory &&
mkdir /memory/upper /memory/work &&
mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work root /root &&
cp /command /root/.l3dsr-command &&
exec switch_root -c /dev/console /root /bin/sh /.l3dsr-command
echo "l3dsr-exit: 125"
poweroff -f
"""

_COMMAND = """\
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm /lib/modules
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t tmpfs tmp /var/tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
ln -sfn {modules} /lib/modules/{release}
ip link set lo up
hostname lab
ulimit -n $(ulimit -Hn)
cd {directory}
{environment} {words}
echo "{exit} $?"
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


class KernelError(Exception):
    """A kernel cannot be had or booted; str() says why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel's package, unpacked. release: as `uname -r` says it; modules: their directory."""

    release: str
    image: Path
    modules: Path


def main(version: str, words: Sequence[str]) -> int:
    """Run pytest on a kernel. words: for pytest. Returns: its exit code."""
    try:
        kernel = fetch(version)
        build.compile_all()  # here, since it takes long on an emulated processor
        print(f"lab: booting Linux {kernel.release}", flush=True)
        return boot(kernel, [sys.executable, "-m", "pytest", *(words or DEFAULT_TESTS)])
    except KernelError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


def missing() -> str | None:
    """What this host lacks for it; None if it has all."""
    if platform.machine() != "x86_64":
        return "kernels are booted on x86-64 only"
    needed = ("qemu-system-x86_64", "depmod", "dpkg-deb", "apt-get")
    lacking = [name for name in needed if not shutil.which(name)]
    if not _busybox():
        lacking.append("busybox-static")
    if not Path(_KEYRING).exists():
        lacking.append("debian-archive-keyring")
    return f"this system has no {', '.join(lacking)}" if lacking else None


def fetch(version: str) -> Kernel:
    """The newest kernel of a Debian release; kept, so that only the first one is downloaded.

    version: a key of SUITES. Raises: KernelError.
    """
    if version not in SUITES:
        raise KernelError(f"there is no kernel {version!r}; there are {', '.join(SUITES)}")
    lacking = missing()
    if lacking:
        raise KernelError(lacking)
    directory = CACHE / "kernels" / SUITES[version]
    if not (directory / "tree").exists():
        try:
            _download(SUITES[version], directory)
        except RuntimeError as error:
            raise KernelError(f"Linux {version} cannot be fetched: {error}") from None
    image = next((directory / "tree/boot").glob("vmlinuz-*"))
    release = image.name.removeprefix("vmlinuz-")
    modules = next(directory.glob(f"tree/**/lib/modules/{release}"))
    return Kernel(release, image, modules)


def boot(kernel: Kernel, words: Sequence[str], timeout_s: float = BOOT_TIMEOUT_S) -> int:
    """Run a command on a kernel, in the project's directory.

    Returns: its exit code. Raises: KernelError if it does not come to an end.
    """
    directory = CACHE / "kernels"
    initramfs = directory / f"initramfs.{os.getpid()}"
    initramfs.write_bytes(_initramfs(kernel, _command(kernel, words)))
    command = [
        "qemu-system-x86_64", "-accel", _accelerator(), "-cpu", "max", "-smp", "2",
        "-m", "4096", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
        "-serial", "stdio", "-device", "virtio-rng-pci",
        "-virtfs", "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap",
        "-kernel", str(kernel.image), "-initrd", str(initramfs),
        "-append", "console=ttyS0 quiet panic=-1 mitigations=off",
    ]
    try:
        return _run_machine(command, timeout_s)
    finally:
        initramfs.unlink()


def _accelerator() -> str:
    """KVM where the processor has it; a /dev/kvm without that is too fragile to boot on."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return "kvm" if os.access("/dev/kvm", os.W_OK) and {"vmx", "svm"} & set(flags) else "tcg"


def _run_machine(command: Sequence[str], timeout_s: float) -> int:
    """Run qemu, and pass on what the machine prints. Returns: the code that it prints last."""
    code = None
    machine = subprocess.Popen(
        ["timeout", f"{timeout_s:g}", *command], stdin=subprocess.DEVNULL, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, errors="replace")
    assert machine.stdout
    try:
        for line in machine.stdout:
            if line.startswith(_EXIT):
                code = int(line.split()[1])
            else:
                print(line.rstrip("\r\n"), flush=True)
    finally:
        machine.terminate()
        machine.wait()
    if code is None:
        raise KernelError(f"the machine ended without an answer, within {timeout_s:g} s")
    return code


def _command(kernel: Kernel, words: Sequence[str]) -> str:
    variables = {name: value for name, value in os.environ.items() if name.startswith("L3DSR_")}
    if _accelerator() == "tcg":
        variables.setdefault("L3DSR_PATIENCE", "20")  # of lab/node.py
    if not sys.stdout.isatty():
        variables["NO_COLOR"] = "1"  # its console is a terminal, whatever ours is
    return _COMMAND.format(
        modules=shlex.quote(str(kernel.modules)), release=kernel.release, exit=_EXIT,
        directory=shlex.quote(str(REPOSITORY)), words=shlex.join(words),
        environment=shlex.join(["env", *(f"{name}={value}" for name, value in variables.items())]))


# --- the package ---


def _download(suite: str, directory: Path) -> None:
    """Fetch and unpack a release's kernel, by an apt that knows that release alone.

    Raises: RuntimeError.
    """
    state = directory / "apt"
    shutil.rmtree(directory, ignore_errors=True)
    (state / "lists/partial").mkdir(parents=True)
    (state / "archives/partial").mkdir(parents=True)
    (state / "sources.list").write_text(
        f"deb [signed-by={_KEYRING}] {mirror() or _DEFAULT_MIRROR} {suite} main\n")
    (state / "status").touch()
    places = {
        "Dir::Etc::sourcelist": state / "sources.list", "Dir::Etc::sourceparts": "/dev/null",
        "Dir::Etc::preferencesparts": "/dev/null", "Dir::State": state,
        "Dir::State::lists": state / "lists", "Dir::State::status": state / "status",
        "Dir::Cache": state, "APT::Sandbox::User": "root", "Acquire::Languages": "none",
    }
    options = [word for name, value in places.items() for word in ("-o", f"{name}={value}")]
    run(["apt-get", *options, "-q", "update"], timeout_s=600)
    depends = run(["apt-cache", *options, "depends", "--important", "linux-image-amd64"])
    package = next(line.split()[-1] for line in depends.splitlines()
                   if "Depends: linux-image" in line)
    run(["sh", "-c", 'cd "$1" && shift && exec apt-get "$@"', "sh", str(state), *options, "-q",
         "download", package], timeout_s=600)
    tree = directory / "tree.new"
    run(["dpkg-deb", "-x", str(next(state.glob("*.deb"))), str(tree)])
    release = next((tree / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    base = next(tree.glob(f"**/lib/modules/{release}")).parents[2]
    run(["depmod", "-b", str(base), release])
    shutil.rmtree(state)
    tree.rename(directory / "tree")


# --- the first root ---


def _initramfs(kernel: Kernel, command: str) -> bytes:
    """A cpio archive: busybox, the modules that reach the root, and what to do."""
    order = _load_order(kernel)
    files = {
        "init": (_INIT.encode(), 0o755), "command": (command.encode(), 0o644),
        "bin/busybox": (Path(_busybox() or "").read_bytes(), 0o755),
        "modules/order": ("\n".join(order).encode(), 0o644),
        **{f"modules/{name}.ko": (_unpacked(path), 0o644) for name, path in order.items()},
    }
    entries = [_cpio_entry(name, b"", 0o040755) for name in _DIRECTORIES]
    entries += [_cpio_entry(name, octets, 0o100000 | mode)
                for name, (octets, mode) in files.items()]
    return gzip.compress(b"".join([*entries, _cpio_entry("TRAILER!!!", b"", 0)]), 1)


def _cpio_entry(name: str, octets: bytes, mode: int) -> bytes:
    """An entry as the kernel's documentation has it (initramfs buffer format, newc)."""
    fields = [0, mode, 0, 0, 1, 0, len(octets), 0, 0, 0, 0, len(name) + 1, 0]
    head = b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
    return _padded(head) + _padded(octets)


def _padded(octets: bytes) -> bytes:
    return octets + bytes(-len(octets) % 4)


def _load_order(kernel: Kernel) -> dict[str, Path]:
    """The first modules by name, each after those that it needs. What is built in is not there."""
    needs = {}
    for line in (kernel.modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[_module_name(path)] = (path, others.split())
    order: dict[str, Path] = {}

    def add(names: Iterable[str]) -> None:
        for name in names:
            if name in needs and name not in order:
                path, others = needs[name]
                add(_module_name(other) for other in reversed(others))
                order[name] = kernel.modules / path

    add(_MODULES)
    return order


def _module_name(path: str) -> str:
    return Path(path).name.partition(".")[0].replace("-", "_")


def _unpacked(path: Path) -> bytes:
    octets = path.read_bytes()
    return lzma.decompress(octets) if path.suffix == ".xz" else octets


def _busybox() -> str | None:
    """A busybox that needs no libraries, as Debian's busybox-static is."""
    found = shutil.which("busybox")
    if not found:
        return None
    octets = Path(found).read_bytes()
    return found if b"ld-linux" not in octets[:4096] else None
