"""Which image each component runs in, read when the pipeline is compiled."""

import os
from typing import Any

from medssl import __version__


def _image(role: str) -> str:
    # "python" in the name: kfp.local's subprocess runner warns of images that do not say so.
    return os.environ.get(f"MEDSSL_{role.upper()}_IMAGE", f"medssl-python-{role}:{__version__}")


def component(role: str) -> dict[str, Any]:
    """Arguments of `dsl.component` for a role: its image, and no installation at run time."""
    return {"base_image": _image(role), "packages_to_install": [], "install_kfp_package": False}
