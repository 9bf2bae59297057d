"""The help on the configuration, read from the one place that explains its fields: the source of `config.default`."""

import inspect
import re
import textwrap

from infofeat_jax import config as configs

FIELD = re.compile(r"\s+config\.(?P<name>[\w.]+) = (?P<value>.*?)(?:  # (?P<comment>.*))?")
WIDTH = 100


def fields() -> dict[str, tuple[str, str]]:
    """{"attack.epsilon": (its default, its explanation)}, in the order of the source. "" where there is none."""
    found, above = {}, []
    for line in inspect.getsource(configs.default).splitlines():
        if line.strip().startswith("# "):
            above.append(line.strip()[2:])
        elif match := FIELD.fullmatch(line):
            comment = " ".join([*above, match["comment"] or ""]).strip()
            found[match["name"]] = (_default(match["value"]), comment)
            above = []
    return found


def text() -> str:
    """All fields: `--config.NAME=DEFAULT`, and what it means."""
    parts = [
        "The configuration. None: filled in as explained, by method or epsilon. Epsilon and step sizes: 8-bit levels."
    ]
    for name, (default, comment) in fields().items():
        if default == "ConfigDict()":
            parts.append(f"\n{name}: {comment}" if comment else f"\n{name}:")
            continue
        parts.append(f"  --config.{name}={default}")
        parts += textwrap.wrap(comment, WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(parts)


def _default(value: str) -> str:
    return "None" if value.startswith("placeholder(") else value
