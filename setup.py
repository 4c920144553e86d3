"""Builds the optional C++ module with CMake. Everything else about the package stands in pyproject.toml."""

import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()


class CMakeBuild(build_ext):
    """Configures and builds `fastcse._C`; a machine without a compiler gets the package without it, and is told so."""

    def build_extension(self, ext):
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        configure = [
            "cmake",
            str(ROOT),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
        ]
        try:
            subprocess.run(configure, cwd=build, check=True)
            subprocess.run(["cmake", "--build", ".", "--parallel"], cwd=build, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(
                f"\nfastcse: the C++ module was not built ({error}). The package works without it, more slowly "
                "on the CPU; `fastcse info` says so. A C++17 compiler (Debian: apt-get install g++) and a new "
                "install bring it.\n",
                file=sys.stderr,
            )


setup(ext_modules=[Extension("fastcse._C", sources=[])], cmdclass={"build_ext": CMakeBuild})
