"""Private Debian systems in the cache folder, for brokers newer than the machine's own.

/proc and /dev are mounted into such a root only inside a private mount namespace, which ends
with the broker. Deleting a root can therefore never reach the machine's own devices.
"""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import NotPossibleHere
from .machine import Progress, cache_folder, is_root, run
from .packages import build_once, install

BROKERS = ("rabbitmq-server", "redis-server")
_BUILD_SECONDS = 900.0
_NAMESPACE = ("unshare", "--mount", "--propagation", "private")

# Where a broker sees its own data folder.
FOLDER_INSIDE = Path("/mnt")

_ENTER = """
root=$1 folder=$2; shift 2
mount -t proc proc "$root/proc" && mount --rbind /dev "$root/dev" &&
mount --bind "$folder" "$root/mnt" && exec chroot "$root" "$@"
"""


def enter(root: Path, folder: Path) -> list[str]:
    """The words before a command that make it run in `root`, with `folder` as its /mnt."""
    return [*_NAMESPACE, "sh", "-c", _ENTER, "enter", str(root), str(folder)]


@functools.cache
def _may_mount() -> bool:
    try:
        run([*_NAMESPACE, "mount", "-t", "proc", "proc", "/proc"], seconds=10)
    except OSError:
        return False
    return True


def root_of(suite: str, progress: Progress, packages: Sequence[str] = BROKERS) -> Path:
    """The root of a Debian suite with these packages; built where it is missing (half a minute,
    420 MB).

    Raises NotPossibleHere when it cannot be built.
    """
    if not is_root():
        raise NotPossibleHere("not root, so no private Debian root")
    if not _may_mount():
        raise NotPossibleHere("mounts are refused, so no private Debian root")
    name = suite if packages == BROKERS else "-".join([suite, *packages])
    root = cache_folder() / "roots" / name
    if root.exists():
        return root
    if shutil.which("debootstrap") is None:
        install("debootstrap", progress)

    def build(unfinished: Path, lock: int) -> None:
        progress(f"building a private Debian {suite} root in {root} (about half a minute)")
        _build(unfinished, suite, packages, lock)

    try:
        build_once(root, f"root-{name}", build)
    except OSError as error:
        progress(f"the Debian {suite} root could not be built: {error}")
        raise NotPossibleHere(f"no Debian {suite} root ({error})") from error
    return root


def _build(root: Path, suite: str, packages: Sequence[str], lock: int) -> None:
    include = f"--include={','.join(packages)}"
    debootstrap = ["debootstrap", "--variant=minbase", include, suite]
    # The namespace also holds debootstrap's own mounts.
    run([*_NAMESPACE, *debootstrap, str(root)], seconds=_BUILD_SECONDS, inherit=[lock])
    # Erlang looks `localhost` up in this file only.
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    shutil.rmtree(root / "var/cache/apt", ignore_errors=True)
