"""A disk that may not be written to, and a user without a home."""

import errno
import os

import pytest

from sharpjax import cli
from sharpjax.rundir import files as rundir


@pytest.mark.quick
def test_a_file_that_cannot_be_begun_is_named(tmp_path, monkeypatch):
    """And not the temporary one beside it: on a disk that may not be written to, for instance."""

    def refused(path):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), f"{path}.0123456789abcdef.part")

    monkeypatch.setattr(rundir, "_temporary", refused)
    with pytest.raises(OSError, match=r"cannot write \(Read-only file system\): '.*/a.json'"):
        rundir.write_text(tmp_path / "a.json", "{}")


@pytest.mark.quick
@pytest.mark.parametrize("cache", [None, ""])
def test_a_user_without_a_home(monkeypatch, cache):
    """As in a container under a number that has no entry: nothing is kept between runs."""
    import pwd

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    if cache is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", cache)
    cli._enable_compilation_cache()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ
