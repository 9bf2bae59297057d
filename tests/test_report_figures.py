"""The figures show what was measured, and the CAMs what was recorded."""

import io
import re
import shutil
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image
from report_runs import MEASURED, create_cam_images, create_config, create_results, simple_run, write_run

from infofeat_jax import report
from infofeat_jax.report import cam_images, collect, figures, page


def test_the_figures_are_files_of_their_kind(written):
    names = {path.name for path in (written / "figures").iterdir()}
    stems = ("overview", "epochs", "steps", "maps-infofeature-seed0")
    assert names == {f"{stem}.{kind}" for stem in stems for kind in ("png", "svg")}
    for name in names:
        content = (written / "figures" / name).read_bytes()
        if name.endswith("svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
        else:
            with Image.open(io.BytesIO(content)) as image:
                image.load()
                assert min(image.size) > 100
                assert len(np.unique(np.asarray(image.convert("L")))) > 5  # something is drawn


def test_the_plots_show_the_measured_values(study):
    the_study = collect.collect(study)
    with matplotlib.rc_context(figures.theme("light")):
        clean, robust = figures.draw_epochs(the_study).axes
        panels = figures.draw_steps(the_study).axes
        overview = figures.draw_overview(the_study).axes[0]
    np.testing.assert_allclose(clean.lines[0].get_ydata(), [20, 40, 60])
    np.testing.assert_allclose(robust.lines[1].get_ydata(), [10, 20, 30])
    assert [axes.get_title() for axes in panels] == ["InfoFeature"]
    pgd = panels[0].lines[0]
    np.testing.assert_array_equal(pgd.get_xdata(), [1, 2, 3, 5, 7, 10, 20])
    np.testing.assert_allclose(pgd.get_ydata(), [59, 58, 57, 55, 55, 50, 50])
    attacks = ["FGSM", "PGD7", "PGD20", "CW20", "InfoFeature10", "AutoAttack"]
    assert overview.get_legend_handles_labels()[1] == attacks
    np.testing.assert_allclose(overview.containers[2][0].get_xdata(), [53, 50])
    np.testing.assert_allclose(
        overview.containers[5][0].get_xdata(), [40]
    )  # Madry lacks it, and is shown with the rest


def test_validation_curves_are_means_over_seeds(tmp_path):
    for seed in (0, 1):
        simple_run(tmp_path, seed=seed)
    path = tmp_path / "madry-seed1" / "metrics.jsonl"
    path.write_text(path.read_text().replace("0.2,", "0.4,") + '{"step": 31, "epo')  # cut off by a kill
    label, epochs, values = figures.validation(collect.collect(tmp_path).rows[0], "validation_clean_accuracy")
    assert (label, epochs) == ("Madry", [1, 2, 3])
    np.testing.assert_allclose(values.mean(0), [30, 40, 60])
    for other in tmp_path.glob("*/metrics.jsonl"):  # validated after some epochs only
        other.write_text(re.sub(r'"epoch": (\d)', lambda found: f'"epoch": {4 * int(found[1])}', other.read_text()))
    path.write_text(path.read_text().replace('"epoch": 8', '"no": 8'))
    _, epochs, values = figures.validation(collect.collect(tmp_path).rows[0], "validation_clean_accuracy")
    assert epochs == [4, 12]
    np.testing.assert_allclose(values.mean(0), [30, 60])


def test_the_cam_images_are_the_recorded_ones():
    arrays = create_cam_images()
    clean, attacked, difference, *maps = cam_images.tiles(arrays, 1)
    factor = len(clean) // 8
    np.testing.assert_allclose(clean[::factor, ::factor, 0], arrays["images"][1, ..., 0])
    np.testing.assert_allclose(attacked[::factor, ::factor, 2], arrays["perturbed"][1, ..., 0])
    assert cam_images.amplification(arrays) == pytest.approx(4)
    apart = arrays["perturbed"][1] - arrays["images"][1]
    np.testing.assert_allclose(difference[::factor, ::factor], np.broadcast_to(0.5 + 4 * apart, (8, 8, 3)), atol=1e-6)
    assert all(one.shape == clean.shape and one.min() >= 0 and one.max() <= 1 for one in maps)
    strip = cam_images.strip([clean, attacked, difference])
    assert strip.shape == (len(clean), 3 * len(clean) + 2 * cam_images.GAP, 4)
    with Image.open(io.BytesIO(cam_images.to_png(strip))) as image:
        np.testing.assert_allclose(np.asarray(image)[:, : len(clean), :3] / 255, clean, atol=1 / 255)
        assert not np.asarray(image)[:, len(clean) : len(clean) + cam_images.GAP, 3].any()
    grey = np.full((8, 8, 3), 0.5)
    bright = cam_images.overlay(grey, np.array([[0.0, 1.0]]))
    assert bright[:, -1].mean() > bright[:, 0].mean() + 0.2


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_images_of_any_channels_are_shown(channels):
    arrays = create_cam_images()
    arrays |= {name: np.repeat(arrays[name], channels, -1) for name in ("images", "perturbed")}
    tiles = cam_images.tiles(arrays, 0)
    assert {tile.shape[-1] for tile in tiles} == {3}
    assert cam_images.strip(tiles).shape[-1] == 4


@pytest.mark.parametrize(
    ("names", "before", "after", "words"),
    [
        (["cat", "dog", "deer"], 0, 1, "cat, taken for dog"),
        (["cat", "dog", "deer"], 0, 0, "cat, recognised"),
        (["cat", "dog", "deer"], 1, 1, "cat, taken for dog even unattacked"),
        (["cat", "dog", "deer"], 1, 2, "cat, taken for deer; unattacked, for dog"),
        (["cat", "dog", "deer"], 2, 0, "cat, recognised; unattacked, for deer"),
        ([], 0, 7, "0, taken for 7"),
        (["cat"], 0, 7, "cat, taken for 7"),
        (None, 0, 7, "0, taken for 7"),
    ],
)
def test_what_an_image_is_taken_for_is_said_by_name(names, before, after, words):
    arrays = create_cam_images() | {"predicted_clean": np.array([before]), "predicted_perturbed": np.array([after])}
    if names is not None:
        arrays["class_names"] = np.array(names, np.str_)
    assert cam_images.predictions(arrays, 0) == words


def test_the_perturbation_is_amplified_until_it_is_legible(tmp_path):
    """A few pixels that change by more do not leave the rest grey; the factor is said."""
    arrays = create_cam_images()
    arrays["images"], rest = np.full_like(arrays["images"], 0.5), 0.02
    arrays["perturbed"] = arrays["images"] + rest
    arrays["perturbed"][0, 0, 0] = 1.0
    assert cam_images.amplification(arrays) == pytest.approx(25)
    assert cam_images.titles(arrays)[2] == "perturbation \N{MULTIPLICATION SIGN}25"
    assert "perturbation \N{MULTIPLICATION SIGN}25." in cam_images.caption(arrays)
    np.testing.assert_allclose(cam_images.tiles(arrays, 1)[2], 1.0, atol=1e-6)
    np.savez(simple_run(tmp_path) / "cam_images.npz", **arrays)
    assert "perturbation \N{MULTIPLICATION SIGN}25" in report.write(tmp_path).read_text()


def test_names_from_outside_are_text_on_the_page_and_in_the_figures(tmp_path):
    """Neither markup, nor what Matplotlib would take for a formula."""
    names = ["<b>cat</b>", "$\\frac{x$", "</script>"] + [f"$unbalanced {index}" for index in range(7)]
    run = write_run(tmp_path / "$x_1$<i>", create_config(), create_results(create_config(), MEASURED))
    np.savez(run / "cam_images.npz", **create_cam_images() | {"class_names": np.array(names)})
    np.savez(run / "outcomes.npz", cw20=np.arange(2000) < 900)
    shutil.copytree(run, tmp_path / "<!--<script>")  # would hide the end of the script that it stands in
    text = report.write(tmp_path).read_text()
    assert "&lt;b&gt;cat&lt;/b&gt;, taken for $unbalanced 4" in text
    assert not re.search(r"<b>|<i>|<!--", text)
    assert text.count("<script") == text.count("</script>") == 2


@pytest.mark.parametrize("name", ["cam_images.npz", "pictures.npz"])
def test_cam_images_that_cannot_be_read_are_left_out(tmp_path, name):
    run = simple_run(tmp_path)
    for content in (b"", b"PK\x03\x04 torn"):
        (run / name).write_bytes(content)
        assert page.draw_panels(collect.collect(tmp_path)) == []
    for lacking in ({"labels": np.array(3)}, {"images": np.zeros((0, 8, 8, 1))}, {"perturbed": np.zeros((2, 8, 8, 1))},
                    {"labels": np.zeros(3)}):  # fmt: skip
        np.savez(run / name, **create_cam_images() | lacking)
        assert page.draw_panels(collect.collect(tmp_path)) == []


def test_cam_images_of_earlier_runs_are_read_too(tmp_path):
    """They are in pictures.npz; cam_images.npz goes first, unless it is damaged."""
    run = simple_run(tmp_path)
    np.savez(run / "pictures.npz", **create_cam_images() | {"attack": np.array("earlier7")})

    def shown() -> str:
        (panel,) = page.draw_panels(collect.collect(tmp_path))
        return panel.caption

    assert "earlier7" in shown()
    np.savez(run / "cam_images.npz", **create_cam_images())
    assert "infofeature20" in shown()
    (run / "cam_images.npz").write_bytes(b"PK\x03\x04 torn")
    assert "earlier7" in shown()
