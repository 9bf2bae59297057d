"""How this package was installed, and how to add an extra to it."""

import json
from importlib import metadata
from urllib.parse import unquote, urlparse


def command(extra: str) -> str:
    """The command that adds `extra`, from where the package was installed: it is not on a package index."""
    try:
        origin = json.loads(metadata.distribution("infofeat_jax").read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        origin = {}
    url = origin.get("url")
    if url and origin.get("dir_info", {}).get("editable"):
        return f"pip install -e '{unquote(urlparse(url).path)}[{extra}]'"
    return f"pip install 'infofeat_jax[{extra}]{f' @ {url}' if url else ''}'"
