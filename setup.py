"""The part of the build that pyproject.toml cannot say: eBPF programs are compiled."""

import runpy
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BUILD = runpy.run_path(str(Path(__file__).parent / "common/bpf/build.py"))


class BuildWithPrograms(build_py):
    """Compiles eBPF programs beside their sources, from where they are packed as data."""

    def run(self) -> None:
        BUILD["compile_all"]()
        super().run()


setup(cmdclass={"build_py": BuildWithPrograms})
