"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed: that is a lock, too
    fcntl = None  # type: ignore[assignment]

PREFIX = ".softmax_xp-"
_written: set[Path] = set()  # the temporary files of this process


@contextmanager
def whole_file(path: str | os.PathLike[str], mode: str = "w", **options: Any) -> Iterator[IO[Any]]:
    """Open a file to write, which takes its place at the end in one step.

    A reader sees the old file or the new one, never a part. An error inside, or Ctrl-C, leaves the old one. Temporary
    files in the same folder, of processes that were killed, are removed. Pipes, devices and the standard streams are
    written directly.

    Parameters
    ----------
    path : path-like
        Through a symbolic link, as `open` goes.
    mode : "w" or "wb"
        Text or bytes.
    **options
        For `open`: encoding and newline of text.

    Raises
    ------
    OSError
        If it cannot be written; with the name of `path`.
    """
    try:
        descriptor = standard_stream(path)
        if descriptor is not None or (os.path.exists(path) and not os.path.isfile(path)):  # a directory raises
            with open(path if descriptor is None else os.dup(descriptor), mode, **options) as stream:
                yield stream
            return
        target = Path(os.path.realpath(path))
        _remove_abandoned(target.parent)
        held = None
        try:
            while held is None:
                temporary = target.with_name(f"{PREFIX}{secrets.token_hex(8)}")
                _written.add(temporary)
                stream = open(temporary, mode.replace("w", "x"), **options)  # noqa: SIM115 - with a new file's permissions
                held = _lock(stream, temporary)
            with stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if target.exists():
                shutil.copymode(target, temporary)
            os.replace(temporary, target)
        except BaseException:  # Ctrl-C too
            with suppress(OSError):
                temporary.unlink()
            raise
        finally:
            _written.discard(temporary)
            if held is not None and held >= 0:
                os.close(held)
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def standard_stream(path: str | os.PathLike[str]) -> int | None:
    """Return 1 or 2 where `path` is the standard output or error of this process, as /dev/stdout is, else None.

    Opened by its name, a socket is refused and a file truncated. Terminals and /dev/null are opened by their names.
    """
    for descriptor in (1, 2):
        with suppress(OSError):
            status = os.fstat(descriptor)
            if os.path.samestat(os.stat(path), status) and not stat.S_ISCHR(status.st_mode):
                return descriptor
    return None


def remove_temporaries() -> None:
    """Remove the temporary files that this process is writing, because it is about to end."""
    for temporary in list(_written):
        with suppress(OSError):
            temporary.unlink()


def _lock(stream: IO[Any], temporary: Path) -> int | None:
    """Mark a temporary file as being written, until its writer ends or closes the descriptor that is returned.

    Returns None if another process has removed the file, as abandoned, before it could be marked; -1 without locks.
    """
    if fcntl is None:
        return -1
    held = os.dup(stream.fileno())
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.stat(temporary), os.fstat(held)):
            return held
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:  # a file system without locks: nobody can lock, and so remove, the file there
        return held
    stream.close()
    os.close(held)
    return None


def _remove_abandoned(folder: Path) -> None:
    """Remove the temporary files of writers that no longer live; the locks of the others last as long as they do."""
    with suppress(OSError):
        for entry in os.scandir(folder):
            if re.fullmatch(re.escape(PREFIX) + "[0-9a-f]{16}", entry.name) and entry.is_file(follow_symlinks=False):
                with suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    if fcntl is None:
        os.unlink(path)
        return
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    finally:
        os.close(descriptor)
