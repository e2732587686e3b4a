"""Native libraries of torch, loaded by a thread while Python imports what needs none of them."""

import contextlib
import ctypes
import importlib
import importlib.util
import os
import sys
import threading
from pathlib import Path

# While one library is loaded no other can be: what has libraries of its own, and is imported by what comes next, comes
# before those of torch. The names are those of NumPy and of the standard library's own modules.
FIRST = (
    *(
        "array",
        "cmath",
        "csv",
        "ctypes",
        "datetime",
        "decimal",
        "fcntl",
        "hashlib",
        "json",
        "queue",
        "random",
        "select",
    ),
    *("socket", "sqlite3", "struct", "subprocess", "unicodedata", "uuid", "zipfile", "numpy", "yaml"),
)

# As torch loads them: the first for everybody in the process, the second, with all that it needs, for itself.
LIBRARIES = (
    ("libtorch_global_deps.so", os.RTLD_NOW | os.RTLD_GLOBAL),
    ("libtorch.so", os.RTLD_NOW),
)


def start_loading() -> threading.Thread:
    """Start a thread that loads the libraries, 0.3 of the 1.1 s that an import of torch takes.

    What cannot be loaded is loaded again, and its error reported, by the import.
    """
    for name in FIRST:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    thread = threading.Thread(target=_load, name="libraries of torch", daemon=True)
    thread.start()
    return thread


def _load() -> None:
    if sys.platform != "linux":
        return
    with contextlib.suppress(Exception):
        found = importlib.util.find_spec("torch")
        if found is None or found.origin is None:
            return
        # Unlike an import, or `ctypes.CDLL` itself, the call of a function leaves the interpreter's lock to others.
        load = ctypes.CDLL(None).dlopen
        load.argtypes, load.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
        for name, mode in LIBRARIES:
            file = Path(found.origin).parent / "lib" / name
            if not file.is_file() or not load(os.fsencode(file), mode):
                return
