"""The explorer: its data are what the package says, its counts are the package's, and the page works in a browser."""

from __future__ import annotations

import functools
import itertools
import json
import re
import shutil
import threading
import warnings
from decimal import ROUND_HALF_UP, Decimal
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from browser import browser, chrome, chromium_or_fail  # noqa: F401

import minica
from benchmarks import sliders
from minica.__main__ import main
from minica.anatomy import Part, Place
from minica.course import explorer
from minica.experiments import RESULTS, knobs, read_records
from minica.schemes import SCHEMES, planned_parameters

pytestmark = pytest.mark.xdist_group("browser")

DOCS = explorer.DOCS
WIDTHS = (1400, 520, 390)
CHECKS = Path(__file__).with_name("page_checks.js")


@pytest.fixture(scope="module")
def made():
    return explorer.data()


@pytest.fixture(scope="module")
def address():
    """The folder of the page, served on this machine."""
    handler = functools.partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *a: None}), directory=DOCS)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/index.html"
        server.shutdown()


@pytest.fixture
def page(browser):  # noqa: F811
    with chrome.watched(browser) as seen:
        seen.page.goto(chrome.EXPLORER.as_uri())
        yield seen.page
        assert not seen.errors and not seen.abroad


def counted(page, network, scheme, compression, kernel):
    """What the page counts."""
    ask = "([network, scheme, gamma, kernel]) => count(NETWORKS.find((one) => one.name === network), "
    ask += "SCHEMES.find((one) => one.name === scheme), gamma, kernel)"
    return page.evaluate(ask, [network, scheme, compression, kernel])


# ---------------------------------------------------------------- the data


def test_the_committed_data_are_what_the_command_writes(made):
    committed = (DOCS / explorer.FILE).read_text(encoding="utf-8").splitlines()
    written = explorer.script(made).splitlines()
    differing = next((pair for pair in itertools.zip_longest(committed, written) if pair[0] != pair[1]), None)
    assert differing is None, f"docs/{explorer.FILE} is behind: run python -m minica explorer. First difference: {differing}"


def test_sizes_are_those_of_the_survey(made):
    survey = read_records(RESULTS / "survey.json", by="architecture").values()
    surveyed = {row["architecture"]: row["parameters"] for row in survey}
    both = [one for one in made["networks"] if one["name"] in surveyed and "clip" not in one["name"]]
    assert len(both) >= 7  # CLIP's have another head there, and the trunk is not timm's
    for one in both:
        assert one["parameters"] + (one["features"] + 1) * made["classes"] == surveyed[one["name"]], one["name"]


def test_the_papers_backbones_are_there(made):
    weights = {alias for one in made["networks"] for alias in one["weights"]}
    assert weights == {*minica.backbones.ALIASES, "resnet50-mocov3"}
    assert {"tf_efficientnet_lite0", "resnet50v2_c4"} <= {one["name"] for one in made["networks"]}


def test_every_recorded_run_trained_what_is_counted(made):
    """Also that what is shown is in the records: seed by seed the very number."""
    sizes = {one["name"]: one for one in made["networks"]}
    assert made["records"]
    for one in made["records"]:
        network = sizes[one["network"]]
        adapters = planned_parameters(parts_of(network), one["scheme"], one["compression"], one["kernel"])
        assert one["trainable"] == adapters + (network["features"] + 1) * one["classes"]
        tests = [run["test"] for run in read_records(RESULTS / one["file"]).values() if "test" in run]
        for _, value, images, *interval in one["runs"]:
            same = [test for test in tests if test[one["metric"]] == value and test["n"] == images]
            assert same and (not interval or any(test["accuracy_95"] == interval for test in same))


def test_failed_runs_are_counted_and_not_averaged(made, monkeypatch, tmp_path, page):
    """Of five runs one collapses, one breaks and one is missing: the mean is of the two that learned, the others are said."""
    runs = [json.loads(line.rstrip(",")) for line in (RESULTS / "quickstart.json").read_text().splitlines()[1:-1]]
    (before,) = [one for one in made["records"] if one["file"] == "quickstart.json" and one["init"] == "identity"]
    ours = [run for run in runs if run["config"]["lr"] == before["lr"] and run["config"]["options"].get("init") == "identity"]
    assert len(ours) == len(before["runs"]) == 5 and not (before["failed"] or before["broken"] or before["missing"])
    by_seed = {run["config"]["seed"]: run for run in ours}
    by_seed[1]["test"] |= {"accuracy": 0.7, "balanced_accuracy": 0.5, "macro_f1": 0.7 / 1.7}
    by_seed[2].pop("test")
    by_seed[2]["error"] = "TrainingDiverged: made up"
    runs.remove(by_seed[3])
    (tmp_path / "quickstart.json").write_text(json.dumps(runs))
    monkeypatch.setattr(explorer, "RESULTS", tmp_path)
    monkeypatch.setattr(explorer, "NETWORKS", {name: explorer.NETWORKS[name] for name in ("tf_efficientnet_lite0",)})
    (after,) = [one for one in explorer.data()["records"] if one["init"] == "identity"]
    assert [run[0] for run in after["runs"]] == [0, 4] and after["failed"] == after["broken"] == after["missing"] == 1
    said = page.evaluate("(record) => outcome(record)", after).replace("\N{NO-BREAK SPACE}", " ")
    values = [by_seed[seed]["test"]["accuracy"] for seed in (0, 4)]
    assert said.startswith(f"mean {50 * sum(values):.1f} % of 2 seeds ({100 * min(values):.1f} % to {100 * max(values):.1f} %)")
    for what in ("gave every image the same answer", "ended with an error", "not run yet"):
        assert f"; 1 more {what}" in said

    by_seed[0]["trainable"] += 1
    (tmp_path / "quickstart.json").write_text(json.dumps(runs))
    with pytest.raises(ValueError, match="quickstart.json: 'Conv-Adapter' on solar-cells.* trains 161,323 parameters"):
        explorer.data()


def test_the_command(made, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(explorer, "data", lambda: made)
    assert main(["explorer", "--out", str(tmp_path)]) == 0
    assert (tmp_path / explorer.FILE).read_bytes() == (DOCS / explorer.FILE).read_bytes()
    assert str(tmp_path / explorer.FILE) in capsys.readouterr().out
    assert main(["explorer", "--out", str(tmp_path / "none")]) == 2 and "there is no folder" in capsys.readouterr().err


# ---------------------------------------------------------------- counts


def parts_of(network):
    """The places of a network as the package has them."""
    ends = dict(begin=Place("", "input"), end=Place("", "output"), dilation=(1, 1), same_padding=False, layout="", act=None)
    return [
        Part(name, kind, "", in_channels=before, out_channels=after, stride=(stride,) * 2, out_size=tuple(size),
             kernel_size=kernel, init="", **ends)
        for name, kind, before, after, kernel, stride, *size in network["places"]
    ]  # fmt: skip


def test_the_page_counts_as_the_closed_form_does(made, page):
    """Every network, scheme, compression and kernel size that the page offers."""
    everything = """() => NETWORKS.flatMap((network) => SCHEMES.flatMap((scheme) => COMPRESSIONS.flatMap((gamma) =>
        KERNELS.map((kernel) =>
            [network.name, scheme.name, gamma, kernel, count(network, scheme, gamma, kernel).adapters]))))"""
    shown = page.evaluate(everything)
    assert len(shown) == len(made["networks"]) * len(SCHEMES) * len(explorer.COMPRESSIONS) * len(explorer.KERNELS)
    parts = {network["name"]: parts_of(network) for network in made["networks"]}
    for name, scheme, compression, kernel, adapters in shown:
        assert adapters == planned_parameters(parts[name], scheme, compression, kernel), (name, scheme, compression, kernel)


BUILT = [  # of each family with something of its own: settings that meet every scheme and both ends of both sliders
    ("convnext_small", "conv_parallel", 1, 7),
    ("convnext_small", "residual_sequential", 16, None),
    ("resnet50_clip", "conv_parallel", 8, 5),
    ("resnet50_clip", "residual_sequential", 2, 1),
    ("tf_efficientnet_lite0", "conv_sequential", 32, None),
    ("resnet50", "residual_parallel", 64, 7),
    ("swin_base_patch4_window7_224", "conv_parallel", 4, None),
]


def test_the_page_counts_as_the_built_network_does(made, page):
    """Parameters of adapters, classifier and backbone, and multiply-accumulates by PyTorch's own counter, to the last one."""
    models = {}
    for name, scheme, compression, kernel in BUILT:
        with torch.device("meta"), warnings.catch_warnings(action="ignore"):  # of heavy adapters
            if name not in models:
                models[name] = minica.create_backbone(name, num_classes=made["classes"], pretrained=False)
            model = minica.adapt(models[name], scheme, compression, kernel)
            built, network = minica.count(model), next(one for one in made["networks"] if one["name"] == name)
            minica.detach(model)
        shown = counted(page, name, scheme, compression, kernel)
        assert [shown[key] for key in ("adapters", "head", "trainable", "total")] == [
            built[key] for key in ("adapters", "head", "trainable", "total")
        ], (name, scheme, compression, kernel)
        assert shown["down"] + shown["up"] + shown["alpha"] == built["adapters"] and network["parameters"] == built["backbone"]
        assert network["macs"] + shown["macs"] == built["macs"], (name, scheme, compression, kernel)


def test_the_page_sees_as_far_as_the_notebook_does(made, page):
    """Notebook 04's costs, at this image size: the K x K part, multiply-accumulates, and how far adapters see."""
    name, scheme = "tf_efficientnet_lite0", "residual_parallel"
    costs = knobs.costs(name, scheme, 224, made["classes"])
    for compression, kernel in itertools.product(knobs.COMPRESSIONS, knobs.KERNELS):
        cost, shown = costs[compression, kernel], counted(page, name, scheme, compression, kernel)
        assert (cost.down, cost.up, cost.macs) == (shown["down"], shown["up"] + shown["alpha"], shown["macs"])
        assert cost.field == shown["field"]


# ---------------------------------------------------------------- the page


def picture(page):
    return [page.locator(f"#{name}-drawing").inner_html() for name in ("scheme", "adapter", "parts", "curve")]


def summary(page):
    return page.locator("#summary").inner_text()


@pytest.mark.parametrize("served", [False, True], ids=["from a file", "from a server"])
def test_sliders_and_lists_change_count_and_picture(made, browser, address, served):  # noqa: F811
    with chrome.watched(browser) as seen:
        page = seen.page
        page.goto(address if served else chrome.EXPLORER.as_uri())
        network, scheme, at = "tf_efficientnet_lite0", "conv_parallel", [2, 0]
        page.locator("#network").select_option(network)
        page.locator("#scheme").select_option(scheme)
        page.locator("#compression").fill(str(at[0]))
        page.locator("#kernel").fill(str(at[1]))

        def says_the_count():
            compression, kernel = made["compressions"][at[0]], made["kernels"][at[1]]
            (one,) = [one for one in made["networks"] if one["name"] == network]
            adapters = planned_parameters(parts_of(one), scheme, compression, kernel)
            assert f"{adapters:,} parameters" in summary(page) and one["title"] in summary(page)
            assert f"{adapters:,}" in page.locator("#costs").inner_text()
            assert f"gamma = {compression}" in page.locator("#compression-value").inner_text()
            assert page.locator("#kernel").get_attribute("aria-valuetext") == page.locator("#kernel-value").inner_text()

        says_the_count()
        for number, slider in enumerate(("compression", "kernel")):
            for key, step in (("ArrowRight", 1), ("ArrowRight", 1), ("ArrowLeft", -1)):
                before, said = picture(page), summary(page)
                page.locator(f"#{slider}").press(key)
                at[number] += step
                says_the_count()
                assert summary(page) != said
                assert all(new != old for new, old in zip(picture(page)[1:], before[1:], strict=True))
            for key, end in (("End", -1), ("Home", 0)):
                page.locator(f"#{slider}").press(key)
                at[number] = range(len(made["compressions" if slider == "compression" else "kernels"]))[end]
                says_the_count()
        before = picture(page)
        scheme = "residual_sequential"
        page.locator("#scheme").select_option(scheme)
        says_the_count()
        assert all(new != old for new, old in zip(picture(page), before, strict=True))
        before = picture(page)
        network = "convnext_base"
        page.locator("#network").select_option(network)
        says_the_count()
        assert all(new != old for new, old in zip(picture(page), before, strict=True))
        page.locator("#place").press("ArrowRight")
        assert picture(page)[0] != before[0] and page.locator("#place-name").inner_text() == "stages.0.blocks.1"
        assert not seen.errors and not seen.abroad and seen.addresses


def test_recorded_or_not(made, page):
    """Each record's button leads to its numbers; where nothing is recorded the page says so, and shows no accuracy."""
    page.locator("#network").select_option("tf_efficientnet_lite0")
    reachable = [one for one in made["records"] if one["network"] == "tf_efficientnet_lite0"]
    reachable = [one for one in reachable if one["compression"] in made["compressions"] and one["kernel"] in made["kernels"]]
    buttons = page.locator("#recorded button")
    assert buttons.count() == len({(one["scheme"], one["compression"], one["kernel"]) for one in reachable})
    seen = []
    for i in range(buttons.count()):
        buttons.nth(i).press("Enter")
        assert buttons.nth(i).get_attribute("aria-pressed") == "true" and buttons.nth(i).evaluate(
            "e => e === document.activeElement"
        )
        cards = page.locator("#records .record")
        seen += [cards.nth(j).inner_text().replace("\N{NO-BREAK SPACE}", " ") for j in range(cards.count())]
    assert len(seen) >= len(reachable)
    for one in reachable:
        value = Decimal(100 * one["runs"][0][1]).quantize(Decimal("0.1"), ROUND_HALF_UP)  # as toFixed does
        assert any(one["task"] in text and one["file"] in text and f"{value} %" in text for text in seen), one
    page.locator("#network").select_option("convnext_large")
    text = page.locator("#records").inner_text()
    assert text.startswith("Not recorded.") and "%" not in text and page.locator("#recorded").inner_text() == "None yet."


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_or_collides(browser, width):  # noqa: F811
    """Every network and scheme at the sliders' ends, at the first, an inner and the last place."""
    with chrome.watched(browser, width) as seen:
        seen.page.goto(chrome.EXPLORER.as_uri())
        seen.page.add_script_tag(path=CHECKS)
        assert seen.page.evaluate("faultsEverywhere()") == [] and not seen.errors


def test_it_can_be_read_and_worked_by_keyboard(page):
    page.add_script_tag(path=CHECKS)
    contrasts = page.evaluate("contrasts()")
    assert len(contrasts) > 60
    assert not [found for found in contrasts if found[0] < 4.5]
    for control in page.locator("input, select").all():
        (label,) = page.locator(f"label[for={control.get_attribute('id')}]").all()
        assert label.inner_text()
    order = []
    page.locator("#network").focus()
    for _ in range(5):
        order.append(page.evaluate("document.activeElement.id"))
        page.keyboard.press("Tab")
    assert order == ["network", "scheme", "compression", "kernel", "place"]
    headings = page.locator("h1, h2, h3").evaluate_all("all => all.map((one) => Number(one.tagName[1]))")
    assert headings[0] == 1 and headings.count(1) == 1 and all(b - a <= 1 for a, b in itertools.pairwise(headings))


def test_links_lead_somewhere(page):
    links = page.locator("a").evaluate_all("all => all.map((one) => one.getAttribute('href'))")
    assert len([link for link in links if re.search(r"notebooks/\d\d_\w+\.(ipynb|html)$", link)]) == len(
        list((DOCS.parent / "notebooks").glob("*.ipynb"))
    )
    for link in links:
        assert link.startswith("https://arxiv.org/") or (DOCS / link).is_file(), link


def test_the_time_of_a_slider_is_measured(browser):  # noqa: F811
    """No figure is checked, only that every press is timed and what the table says of it."""
    times = sliders.in_explorer(browser, 3)
    assert times.keys() == set(sliders.SLIDERS) and all(len(each) == 3 and min(each) > 0 for each in times.values())
    record = {"config": {"where": "explorer"}, "hardware": "a processor"}
    text = sliders.table(
        [record | {"milliseconds": {"compression": [30.0, 10.0, 20.0], "kernel": [float(i) for i in range(1, 7)]}}]
    )
    assert "| explorer | compression | 3 | 20 | 30 | a processor |" in text
    assert "| explorer | kernel | 6 | 4 (1 to 6) | 6 | a processor |" in text


def test_without_chromium_the_line_that_installs_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(pytest.fail.Exception, match="sudo apt-get install -y chromium"):
        chromium_or_fail()
