"""Compiles a source with the machine's own compiler, for its own processor; the library stays in the cache folder.

Raises `OSError` or `subprocess.SubprocessError` where that cannot be.
"""

import os
import re
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path

from cmasd.signals import as_c

FOLDER = Path(__file__).parent
"""Of sources, which include others beside them, and `signals.h`, which is written where they are compiled."""
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared")
FAST = ("-ffast-math", "-fopenmp", "-nostartfiles")
"""Of models. The last leaves out what gcc adds for fast mathematics, which would flush small numbers in the whole
process."""
AS_WRITTEN = ("-ffp-contract=off",)
"""Of what is to have the very numbers that Python has."""
COMPILE_SECONDS = 300.0
"""A compiler that has a busy machine to share takes more than one minute; to do without what it makes takes longer."""


def cache_folder() -> Path:
    """Where what was built or measured for this machine is kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cmasd"


def built(source: str, *flags: str) -> Path:
    """The library of a source, from the cache folder if it was built before."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise OSError("there is no C compiler")
    command = [compiler, *FLAGS, *flags]
    processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    known = [line for line in processor.splitlines() if line.startswith(("model", "flags", "Features", "CPU"))]
    threads = _threads() if "-fopenmp" in flags else []
    version = subprocess.run([compiler, "--version"], capture_output=True, check=True, timeout=COMPILE_SECONDS).stdout
    sources = [path.read_bytes() for path in _included(FOLDER / source)]
    about = repr([command, known, threads, version, source, sources, as_c()])
    name = f"{Path(source).stem}-{sha256(about.encode()).hexdigest()[:16]}.so"
    library = cache_folder() / "kernels" / name
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            fresh = Path(folder) / library.name
            (Path(folder) / "signals.h").write_text(as_c(), encoding="ascii")
            subprocess.run(
                [*command, f"-I{folder}", str(FOLDER / source), *threads, "-lm", "-o", str(fresh)],
                capture_output=True,
                check=True,
                timeout=COMPILE_SECONDS,
            )
            fresh.replace(library)
    return library


def _included(source: Path) -> list[Path]:
    """It, and all that it includes, but what is written where it is compiled."""
    named = re.findall(r'^#include "(.+)"', source.read_text(encoding="utf-8"), re.MULTILINE)
    others = [_included(source.with_name(name)) for name in named if source.with_name(name).exists()]
    return [source, *(path for other in others for path in other)]


def _threads() -> list[str]:
    """The OpenMP library that torch has loaded: two of them would fight for the processors."""
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/lib" in line}
    return sorted(path for path in loaded if Path(path).name.startswith(("libgomp", "libiomp5")))[:1]
