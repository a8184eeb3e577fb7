"""The part of the build that pyproject.toml cannot say: programs are compiled, manuals made."""

import runpy
import sys
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PAGES = Path("build/pages")  # relative, as data files have to be
BUILD = runpy.run_path(str(ROOT / "common/bpf/build.py"))


class BuildWithPrograms(build_py):
    """Compiles eBPF programs beside their sources, from where they are packed as data.

    And makes man pages and shell completion, which are installed as data files.
    """

    def run(self) -> None:
        BUILD["compile_all"]()
        self._make_pages()
        super().run()

    def _make_pages(self) -> None:
        sys.path.insert(0, str(ROOT))
        from balancer import cli as balancer
        from common.settings import pages
        from packetbridge import cli as packetbridge

        try:
            made = [path for program in (balancer, packetbridge)
                    for path in pages.write(program.make_parser, PAGES)]
        except ImportError as error:
            print(f"warning: man pages and shell completion are left out: {error}",
                  file=sys.stderr)
            return
        files = self.distribution.data_files = list(self.distribution.data_files or [])
        files += [(str(path.parent), [str(PAGES / path)]) for path in made]


setup(cmdclass={"build_py": BuildWithPrograms})
