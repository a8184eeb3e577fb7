"""A Debian 13 of its own, in a directory: to prove what is meant for fresh machines.

Made by debootstrap from the mirror that this host uses, and kept as an archive,
so that only the first one takes long. Nothing of it touches the host: it runs in
a mount namespace of its own and starts no service.
"""

import ast
import copy
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lab.node import REPOSITORY, Node, Process, run, wait_until

SUITE = "trixie"
CACHE = Path("/var/cache/l3dsr-lab")
# What a cloud image or a Vagrant box has, beyond the least that boots.
_PACKAGES = "systemd,systemd-sysv,dbus,iproute2,ca-certificates"
_FAST_DPKG = "force-unsafe-io\n"  # a root that is thrown away need not survive a power cut
_NO_TRANSLATIONS = 'Acquire::Languages "none";\nAPT::Keep-Downloaded-Packages "true";\n'


# What systemd wants to find: the kernel's file systems, a /dev of its own, the name of a container.
_BOOT = """\
mount --bind "$1" "$1"
cd "$1"
mount -t proc proc proc
mount -t sysfs sys sys
mount -t bpf bpf sys/fs/bpf
mount -t cgroup2 cgroup sys/fs/cgroup
mount -t tmpfs run run
mount -t tmpfs tmp tmp
mount -t tmpfs -o mode=755 dev dev
for name in null zero full random urandom tty; do
  touch "dev/$name"
  mount --bind "/dev/$name" "dev/$name"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 pts dev/pts
ln -s pts/ptmx dev/ptmx
mkdir -p old
pivot_root . old
umount -l /old
exec env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot . /usr/lib/systemd/systemd
"""


class Root:
    """The root directory of a Debian."""

    def __init__(self, path: Path) -> None:
        """Unpack one into `path`, an empty directory. Raises: RuntimeError."""
        self.path = path
        self._binds: dict[str, str] = {}
        archive = CACHE / f"{SUITE}-{platform.machine()}.tar"
        if not archive.exists():
            _make_archive(archive)
        run(["tar", "-C", str(path), "-xf", str(archive)])
        for cached, place in (("archives", "/var/cache/apt/archives"), ("pip", "/root/.cache/pip")):
            (CACHE / cached).mkdir(exist_ok=True)
            self.bind(str(CACHE / cached), place)
        (path / "etc/resolv.conf").write_text(Path("/etc/resolv.conf").read_text())
        self.environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root", "LANG": "C.UTF-8", **self._pip_environment(),
            **{name: value for name, value in os.environ.items() if name.endswith("_proxy")},
        }

    def bind(self, source: str, place: str) -> None:
        """Show a directory of the host at `place`."""
        self._binds[place] = source
        (self.path / place.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def command(
        self, words: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> list[str]:
        """A command line that runs in it; it becomes the command, mounts go when that ends."""
        root = shlex.quote(str(self.path))
        # Its root has to be a mount: `ip netns` makes it one that does not propagate.
        mounts = [f"mount --bind {root} {root}",
                  f"mount -t proc proc {root}/proc", f"mount -t sysfs sys {root}/sys",
                  f"mount --rbind /dev {root}/dev", f"mount -t tmpfs run {root}/run"]
        mounts += [f"mount --bind {shlex.quote(source)} {root}{place}"
                   for place, source in self._binds.items()]
        variables = {**self.environment, **(environment or {})}
        become = ["exec", "env", "-i", *(f"{name}={value}" for name, value in variables.items()),
                  "chroot", str(self.path), *words]
        script = " && ".join([*mounts, shlex.join(become)])
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", script]

    def boot(self, node: Node) -> Process:
        """Start it as a host of the lab: systemd in namespaces of its own, with the node's network.

        Ended by `halt`. Raises: RuntimeError where this host has no cgroup v2.
        """
        _cgroup_of(node)
        (self.path / "etc/hostname").write_text(f"{node.name}\n")
        group = f"/sys/fs/cgroup/l3dsr-{node.namespace}"
        # `ip netns exec` has mounted a new /sys, without what was mounted below it.
        enter = (f"mount -t cgroup2 cgroup /sys/fs/cgroup && mkdir -p {group} && "
                 f"echo $$ > {group}/cgroup.procs && exec ")
        script = enter + shlex.join([
            "unshare", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--fork", "--kill-child",
            "--propagation", "private", "sh", "-ec", _BOOT, "boot", str(self.path),
        ])
        return node.start("systemd", ["sh", "-c", script])

    @staticmethod
    def halt(booted: Process) -> None:
        """Pull the plug."""
        booted.kill()
        group = _cgroup_of(booted.node)

        def is_gone() -> bool:
            run(["find", str(group), "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"],
                check=False)
            return not group.exists()

        wait_until(is_gone, 10, f"{booted.name} is gone")

    def inside(self, booted: Process, words: Sequence[str]) -> subprocess.CompletedProcess:
        """Run a command in a booted one. Returns: as `run`. Raises: RuntimeError if it ended."""
        children = Path(f"/proc/{booted.pid}/task/{booted.pid}/children")

        def started() -> bool:
            if not booted.running:
                raise RuntimeError(f"{booted.name} ended:\n{booted.log()}")
            return bool(children.read_text())

        wait_until(started, 10, f"{booted.name} is started")
        command = ["nsenter", "--all", "--target", children.read_text().split()[0], *words]
        return _run_merged(command)

    def run(
        self, words: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess:
        """Run a command in it. Returns: with its output, stdout and stderr together."""
        return _run_merged(self.command(words, environment))

    def copy(self, path: Path) -> "Root":
        """A second one like it, in `path`, which does not exist yet."""
        run(["cp", "-a", str(self.path), str(path)])
        twin = copy.copy(self)
        twin.path = path
        return twin

    def copy_project(self, place: str) -> None:
        """Copy the project there, as a checkout would be."""
        target = self.path / place.lstrip("/")
        target.mkdir(parents=True)
        names = [path.name for path in REPOSITORY.iterdir() if path.name[0] != "."]
        run(["cp", "-a", *(str(REPOSITORY / name) for name in names), str(target)])

    def _pip_environment(self) -> dict[str, str]:
        """How this host's pip is set up, as variables that hold inside."""
        listed = subprocess.run(
            [sys.executable, "-m", "pip", "config", "list"], text=True, check=False,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        ).stdout
        variables = {}
        for line in listed.splitlines():
            name, _, value = line.partition("=")
            key = name.rpartition(".")[2].replace("-", "_").upper()
            words = str(ast.literal_eval(value)).split()
            variables[f"PIP_{key}"] = " ".join(map(self._carry_in, words))
        return variables

    def _carry_in(self, word: str) -> str:
        """A value of pip's settings that holds inside: what it names on this host comes along."""
        place = word.removeprefix("file://")
        if not place.startswith("/") or not Path(place).exists():
            return word
        if Path(place).is_dir():
            # An index (file://) points to files that lie beside it.
            whole = str(Path(place).parent) if place != word else place
            self.bind(whole, whole)
            return word
        target = self.path / "opt/host" / Path(place).name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(Path(place).read_bytes())
        return f"/opt/host/{target.name}"


def _run_merged(command: Sequence[str]) -> subprocess.CompletedProcess:
    return subprocess.run(
        command, text=True, check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _cgroup_of(node: Node) -> Path:
    """The control group of a booted host. Raises: RuntimeError without cgroup v2."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place) / f"l3dsr-{node.namespace}"
    raise RuntimeError("this host has no cgroup v2 mounted, which systemd needs")


def _make_archive(archive: Path) -> None:
    """debootstrap, packed. Raises: RuntimeError with the end of what it says."""
    CACHE.mkdir(parents=True, exist_ok=True)
    tree = CACHE / f"{SUITE}.new.{os.getpid()}"
    words = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", SUITE, str(tree)]
    found = mirror()
    try:
        run([*words, found] if found else words, timeout_s=600)
        (tree / "etc/dpkg/dpkg.cfg.d/fast").write_text(_FAST_DPKG)
        (tree / "etc/apt/apt.conf.d/90lab").write_text(_NO_TRANSLATIONS)
        policy = tree / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        run(["chroot", str(tree), "apt-get", "clean"])
        draft = archive.with_suffix(f".{os.getpid()}")
        run(["tar", "-C", str(tree), "-cf", str(draft), "."])
        draft.replace(archive)
    finally:
        run(["rm", "-rf", "--one-file-system", str(tree)])


def mirror() -> str | None:
    """The Debian mirror of this host; None where it has none (debootstrap has a default)."""
    listed = run(["apt-get", "indextargets", "--format", "$(ORIGIN)|$(CODENAME)|$(REPO_URI)",
                  "Created-By: Packages"], check=False)
    for line in listed.splitlines():
        origin, codename, uri = line.split("|")
        if origin == "Debian" and "-" not in codename:
            return uri
    return None
