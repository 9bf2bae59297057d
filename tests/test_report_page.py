"""The page and its LaTeX: complete, escaped, and in need of nothing else."""

import base64
import html
import html.parser
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from report_runs import create_cam_images, create_config, simple_run

from infofeat_jax import config as configs
from infofeat_jax import report
from infofeat_jax.report import markup, notes, provenance, runs, tables


class Elements(html.parser.HTMLParser):
    """All tags with their attributes, and the text outside of style sheets."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.words, self.within = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        self.within = tag

    def handle_data(self, data):
        if self.within != "style":
            self.words.append(data)


def test_the_page_needs_nothing_else(written):
    text = (written / "index.html").read_text()
    elements = Elements(text).found
    assert not {tag for tag, _ in elements} & {"link", "iframe", "object", "embed"}
    assert not [attributes for tag, attributes in elements if tag == "script" and "src" in attributes]
    resources = [a[name] for _, a in elements for name in ("src", "srcset", "href", "data") if name in a]
    assert len(resources) > 8
    for resource in resources:
        assert resource.startswith(("data:image/png;base64,", "data:image/svg+xml;base64,", "#"))
    assert not re.search(
        r"https?://|file:|url\(|@import|import\(|fetch\(|XMLHttpRequest", re.sub(r"base64,[\w+/=]+", "", text)
    )
    for resource in resources:
        if "svg+xml" in resource:
            svg = base64.b64decode(resource.partition(",")[2]).decode()
            assert not re.findall(r'href="(?!#|data:)', svg)
    anchors = {resource[1:] for resource in resources if resource.startswith("#")}
    assert anchors <= {attributes.get("id") for _, attributes in elements}


def test_text_from_outside_is_escaped(written):
    text = (written / "index.html").read_text()
    assert "Rows &amp; &lt;script&gt;alert(1)&lt;/script&gt;_%" in text
    assert "leaves &lt;b&gt;12 points&lt;/b&gt; more" in text
    assert len(re.findall("<script", text)) == 2  # the page's own: what it works on, and what it does
    assert "<b>" not in text


def test_the_page_says_what_a_number_needs(written):
    words = " ".join(" ".join(Elements((written / "index.html").read_text()).words).split())
    for fact in (
        "2,000 test images of cifar10", "linf epsilon 8/255, attack steps of 2/255", "JPEG re-encoding", "a {note}",
        "Few images: AutoAttack on 200 only", "Reduced setting", "1 of 5 runs do not count", "alp-seed0 missing",
        "49,000 training images", "3 epochs, batches of 128, seed 2", "7 steps of 2/255", "1,234", "0.10.2",
        "1 x cpu (2 x86_64 cores)", "infofeature-seed0: PGD20 leaves", '"weight_decay": 0.0002',
    ):  # fmt: skip
        assert fact in words, fact


def test_the_tables_agree_with_the_results(study, written):
    """Every accuracy of results.json stands in Markdown, LaTeX and on the page, in the row and column of its name."""
    results = json.loads((study / "infofeature-seed0" / "results.json").read_text())
    rows = [line.strip("| \n").split(" | ") for line in (written / "table.md").read_text().splitlines()]
    header, row = (next(line for line in rows if line[0] == label) for label in ("method", "InfoFeature"))
    latex = (written / "table.tex").read_text()
    latex_row = next(line for line in latex.splitlines() if line.startswith("InfoFeature &")).split(" & ")
    html_row = re.search(
        r'<tr class="row"><th scope="row">InfoFeature</th>(.*)</tr>', (written / "index.html").read_text()
    )
    html_cells = re.findall(r"<td[^>]*>([\d.]+)", html_row[1])
    for name, column in {"clean": "clean", "pgd20": "PGD20", "autoattack": "AutoAttack"}.items():
        index = header.index(column)
        expected = f"{100 * results[name]:.1f}"
        assert [cells.split()[0] for cells in (row[index], latex_row[index])] == [expected, expected]
        assert html_cells[index - 1] == expected


def test_the_latex_is_well_formed(written):
    """As many cells a line as columns, environments closed, and no character that TeX takes for a command."""
    text = (written / "table.tex").read_text()
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == 6
    for columns, body in re.findall(r"\\begin\{tabular\}\{(\w+)\}\n(.*?)\\end\{tabular\}", text, re.DOTALL):
        for line in filter(r"\hline".__ne__, body.strip().split("\n")):
            content = line.removesuffix(r" \hline").removesuffix(r" \\")
            assert content != line
            spans = [int(n) for n in re.findall(r"\\multicolumn\{(\d+)\}", content)]
            assert len(re.split(r"(?<!\\)&", content)) + sum(spans) - len(spans) == len(columns)
    assert re.sub(r"[\x20-\x7e\n]", "", text) == ""
    assert r"AutoAttack on 200 only; near 50 \% a" in text
    assert markup.to_latex("", [tables.Table("x", r"a_b & 50% {$#} \ ^~", [], [], [])]).count(
        r"a\_b \& 50\% \{\$\#\} \textbackslash{} \textasciicircum{}\textasciitilde{}."
    )
    assert text.count("{") == text.count("}")


def test_a_second_report_replaces_the_first(tmp_path):
    run = simple_run(tmp_path)
    np.savez(run / "cam_images.npz", **create_cam_images())
    first = report.write(run)
    assert first == tmp_path / "report" / "index.html"
    assert (first.parent / "figures" / "maps-madry-seed0.png").exists()
    (run / "cam_images.npz").unlink()
    simple_run(tmp_path, seed=1)
    text = report.write(tmp_path).read_text()
    assert "madry-seed1" in text
    assert not list(first.parent.rglob("maps-*"))
    assert not list(first.parent.rglob("*.partial"))
    assert report.write(tmp_path).read_text() == text  # the same runs, the same page


@pytest.mark.parametrize("method", ["madry", "feature_scatter"])
def test_the_command_on_the_page_gives_the_same_configuration(method):
    import configs.cifar10_resnet18 as plain

    config = create_config(method, 3, **{
        "optimizer.milestones": (1.0, 2.0), "method.label_smoothing": 0.5, "attack.epsilon": 4.0, "attack.num_steps": 1,
        "attack.step_size": 2.0, "eval.step_size": 2.0,
        "data.note": "it's a \"note\"", "eval.attacks": ("clean",),
    })  # fmt: skip
    words = shlex.split(provenance.command(config, config).replace("\\\n", ""))
    assert words[:3] == ["python", "main.py", f"--config={provenance.PLAIN}:{method}"]
    code = (
        "import sys; from absl import flags; from ml_collections import config_flags;"
        "from infofeat_jax import config as c; F = flags.FLAGS; config_flags.DEFINE_config_file('config');"
        "F(sys.argv); print(c.to_json(c.resolve(F.config)))"
    )
    root = pathlib.Path(plain.__file__).parent.parent
    process = subprocess.run(
        [sys.executable, "-c", code, *words[2:]], cwd=root, capture_output=True, text=True, check=True
    )
    assert json.loads(process.stdout) == config


def test_an_evaluation_in_another_setting_has_a_command_of_its_own():
    config = create_config()
    more = create_config(**{"eval.attacks": ("clean", "pgd50")})
    assert provenance.command(config, more).count("main.py") == 1
    assert "pgd50" in provenance.command(config, more)
    weaker = create_config(**{"attack.epsilon": 4.0, "eval.attacks": ("clean", "pgd50")})
    first, second = provenance.command(config, weaker).split("\npython ")
    assert not any(part in first for part in ("pgd50", "epsilon", "--mode"))
    assert all(part in second for part in ("--mode=evaluate", "pgd50", "--config.attack.epsilon=4.0"))


def test_what_weights_to_start_from_determine_is_not_in_the_command(tmp_path):
    """A run's directory refuses it; a file may need it."""
    config = create_config(**{"model.mean": (0.25,), "init_from": str(tmp_path)})
    assert "model.mean" not in provenance.command(config, config)
    config["init_from"] = str(tmp_path / "robust.pt")
    assert "model.mean" in provenance.command(config, config)


def test_options_of_a_model_are_not_left_out_silently():
    config = create_config()
    config["model"]["options"] = {"blocks": [1, 1]}
    assert provenance.command(config, config) == (
        "config.model.options = {'blocks': [1, 1]} needs a configuration file of its own, with which it was trained."
    )


@pytest.mark.parametrize("field", ["eval.pictures", "eval.cam_images"])
def test_the_command_of_an_earlier_run_uses_the_field_of_today(field):
    config = create_config()
    config["eval"] = {name: value for name, value in config["eval"].items() if name not in ("pictures", "cam_images")}
    config["eval"][field.partition(".")[2]] = 3
    known = {name for name in ("pictures", "cam_images") if name in configs.default().eval}
    flags = re.findall(r"--config\.eval\.(\w+)=3", provenance.command(config, config))
    assert set(flags) == (known if field == "eval.pictures" else known & {"cam_images"})


# The script of the page, in a browser

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome", "chromium-browser"))), None)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium")
def test_the_script_sorts_and_compares(study, tmp_path):
    """In a copy of the page that clicks on headings, and chooses two runs, by itself."""
    directory = shutil.copytree(study, tmp_path / "copy")
    for name, first in {"infofeature-seed0": 0, "madry-seed1": 20}.items():
        values = np.zeros(2000, bool)
        count = round(2000 * json.loads((directory / name / "results.json").read_text())["cw20"])
        values[first : first + count] = True
        np.savez(directory / name / "outcomes.npz", cw20=values)
    clicks = """<script>
      const groups = () => [...document.querySelectorAll("#accuracy tbody")];
      const rows = () => groups().map(group => group.rows[0].cells[0].textContent);
      const click = index => document.querySelectorAll("#accuracy thead button")[index].click();
      const said = [rows()];
      for (const index of [2, 2, 8, 8, 0]) { click(index); said.push(rows()); }
      said.push(document.querySelector("#compare p").textContent);
      document.body.dataset.said = JSON.stringify(said);
    </script></body>"""
    page_path = report.write(directory)
    page_path.write_text(page_path.read_text().replace("</body>", clicks))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}"]
    process = subprocess.run(
        [*command, "--dump-dom", f"file://{page_path}"], capture_output=True, text=True, timeout=600, check=True
    )
    (said,) = [attributes["data-said"] for tag, attributes in Elements(process.stdout).found if tag == "body"]
    *orders, words = json.loads(said)
    assert orders == [
        ["Madry", "InfoFeature", "ALP"],
        ["Madry", "InfoFeature", "ALP"],  # by clean accuracy; a row without any is last
        ["InfoFeature", "Madry", "ALP"],
        ["InfoFeature", "Madry", "ALP"],  # by AutoAttack, which InfoFeature alone has
        ["InfoFeature", "Madry", "ALP"],
        ["Madry", "InfoFeature", "ALP"],  # restored
    ]
    assert words == (
        "Of 2000 test images, under CW20 880 are classified correctly by both, 60 by madry-seed1 only"
        f" (numbers {', '.join(map(str, range(900, 940)))}, \N{HORIZONTAL ELLIPSIS}, from 0), 20 by infofeature-seed0"
        f" only (numbers {', '.join(map(str, range(20)))}, from 0), 1040 by neither."
    )


def test_plotting_libraries_are_imported_for_a_report_only():
    code = (
        "import sys, infofeat_jax.cli; print([m for m in ('matplotlib', 'jinja2', 'scipy.stats') if m in sys.modules])"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout.strip() == "[]"


def test_the_setting_of_no_run_is_said():
    assert notes.setting_line(runs.Study(pathlib.Path(), "", "", [], [])) == "no finished run"
