"""An image with the Python that runs the tests: its program, what that links to, its library."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

from tests.support.controlplane.node.images import Image
from tests.support.controlplane.node.lifecycle import import_image

NAME = "docker.io/library/python:probe"
LEFT_OUT = re.compile(r"(^|/)(tests?|__pycache__|(site|dist)-packages|ensurepip|config-[^/]*)/")


def import_python(state: Path) -> str:
    """Give the node the image and return its name."""
    program = Path(sys.executable).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    kept = [
        path
        for path in library.rglob("*")
        if path.is_file() and not LEFT_OUT.search(str(path.relative_to(library)))
    ]
    linked = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True)
    libraries = [Path(found) for found in re.findall(r"(/\S+) \(0x", linked.stdout)]
    files = {str(path): path for path in (program, *libraries, *kept)}
    # Found by its name, it looks for its library where it was built to be.
    files["/usr/bin/python3"] = program
    import_image(state, Image(name=NAME, files=files, entrypoint=["python3"]))
    return NAME
