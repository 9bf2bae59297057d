"""Sphinx: `pip install -e '.[train,docs]' && sphinx-build -W docs build/docs`; then open build/docs/index.html."""

import pathlib
import re
import warnings

warnings.filterwarnings("ignore", category=DeprecationWarning)

from infofeat_jax import __version__, config_help  # noqa: E402

project, author, copyright = "infofeat_jax", "The infofeat_jax authors", "Apache License 2.0"
release = version = __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
html_theme, html_title = "furo", "infofeat_jax"
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["_static"]
html_css_files = ["extra.css"]
html_show_sphinx = False
myst_heading_anchors = 3
nb_execution_mode = "auto"
nb_execution_raise_on_error = True
nb_execution_timeout = 1800
nb_render_markdown_format = "gfm"
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_use_rtype = False
default_role = "code"
nitpicky = True  # a reference that leads nowhere is an error
nitpick_ignore_regex = [
    ("py:class", r"(?!infofeat_jax\.).*"),  # of other packages, and the short names that `shorten` makes
    ("py:class", r"infofeat_jax\.(training\.(pace|keeper)|attacks\.(survivors|inputs))\..*"),  # of internal modules
]
# What annotations evaluate to, and the names that infofeat_jax.types has for it.
ALIASES = {
    "Callable[[Float[Array, 'b h w c']], Outputs]": "Forward",
    "Callable[[Outputs, Outputs, Integer[Array, 'b']], Float[Array, 'b']]": "Objective",
    "float | int | number | Real[Array, ''] | Real[Array, 'b'] | Real[ndarray, 'b']": "Budget",
    "Key[Array, ''] | UInt32[Array, '2']": "PRNGKey",
    "Float[Array, 'b h w c']": "Images",
    "Integer[Array, 'b']": "Labels",
    "Float[Array, 'b']": "PerExample",
    "Callable[[PRNGKey, Images], Images]": "Start",
}


def shorten(app, what, name, obj, options, signature, returned):
    """Signatures with the types' names in place of what they stand for."""

    def short(text: str | None) -> str | None:
        text = text and re.sub(r"~?\b(?!numpy\.dtype)(?:[A-Za-z_]\w*\.)+(?=[A-Za-z_])", "", text)
        for long, alias in ALIASES.items() if text else ():
            text = text.replace(long, alias)
        return text

    return short(signature), short(returned)


def setup(app) -> None:
    """Sphinx calls this."""
    app.connect("autodoc-process-signature", shorten)


def configuration() -> str:
    """The page on the configuration, from the comments in config.py."""
    head = ["", "| field | default | |", "|---|---|---|"]
    lines = [
        "# Configuration", "",
        "Every field is a flag: `--config.attack.epsilon=16`. `None`: filled in as explained. Budgets: 8-bit levels.",
    ]  # fmt: skip
    for name, (default, explanation) in config_help.fields().items():
        text = re.sub(r"([<|*_])", r"\\\1", explanation)
        if default == "ConfigDict()":
            lines += ["", f"## {name}", "", text[:1].upper() + text[1:], *([] if name == "model.options" else head)]
            continue
        lines += ["", "## Top level", *head] if name == "seed" else []
        lines.append(f"| `{name}` | `{default}` | {text} |")
    return "\n".join(lines) + "\n"


(pathlib.Path(__file__).parent / "reference" / "configuration.md").write_text(configuration())
