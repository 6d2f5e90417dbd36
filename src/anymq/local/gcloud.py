"""What the Google Cloud SDK brings: the emulator of Pub/Sub, which runs on Java."""

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path

from .errors import NotPossibleHere
from .jars import need_java
from .kind import Program, Ways
from .machine import Progress, run

# The tag of the SDK's image with the emulators in it. Its registry keeps a tag for one year.
RELEASE = "587.0.0-emulators"
_ASK_SECONDS = 60.0
_REMEDY = "install the Google Cloud SDK and `gcloud components install pubsub-emulator`"


class EmulatorJar:
    """An `Installer` of the emulator, which may not be passed on: it is there, or it is not."""

    versions: Sequence[str] = ()

    def ways(self, wanted: str, progress: Progress) -> Ways:
        yield functools.partial(_in_sdk, progress)

    def remedy(self, wanted: str) -> str:
        return f"{_REMEDY} (or `apt-get install google-cloud-cli-pubsub-emulator`), and Java 11"


def _in_sdk(progress: Progress, _: Path) -> Program:
    if shutil.which("gcloud") is None:
        raise NotPossibleHere("no Google Cloud SDK is installed")
    found = sorted(_sdk().glob("platform/pubsub-emulator/lib/cloud-pubsub-emulator-*.jar"))
    if not found:
        raise NotPossibleHere("the Google Cloud SDK that is installed has no pubsub-emulator")
    need_java(progress)
    return Program(str(found[-1]), "the Google Cloud SDK")


@functools.cache
def _sdk() -> Path:
    try:
        said = run(
            ["gcloud", "info", "--format=value(installation.sdk_root)"], seconds=_ASK_SECONDS
        )
    except OSError as error:
        raise NotPossibleHere(f"gcloud does not tell where it is ({error})") from error
    return Path(said.strip().splitlines()[-1])
