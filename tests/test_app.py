"""From a folder of pictures to a report, predictions and an ONNX file, as a user would: through the commands."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
from browser import browser, chrome, chromium_or_fail  # noqa: F401
from PIL import Image, ImageDraw

import minica
from minica import data
from minica.__main__ import main
from minica.app import onnx_file, prediction, report, splits
from minica.app.choices import choose_scheme, class_weights
from minica.app.prediction import as_csv, load_run
from minica.app.splits import draw_splits, read_pictures
from minica.data.table import read_table
from minica.experiments.scores import balanced_interval
from minica.training import TrainingDiverged

CLASSES = ("Mutter & Bolzen", "große Schraube", "washer <b>")  # sorted, with what HTML and file systems find hard
LOST = {"washer <b>/half.jpg", "washer <b>/phone.jpg"}


def part(kind: int, seed: int, side: int = 64) -> Image.Image:
    """A bright square, disc or triangle somewhere on noise."""
    random = np.random.RandomState(1000 * kind + seed)
    picture = Image.fromarray(random.randint(0, 60, (side, side, 3), np.uint8))
    left, top = random.randint(2, side // 3, 2).tolist()
    box, pen = (left, top, left + side // 2, top + side // 2), ImageDraw.Draw(picture)
    colour = tuple(random.randint(150, 255, 3).tolist())
    if kind == 2:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=colour)
    else:
        (pen.rectangle if kind == 0 else pen.ellipse)(box, fill=colour)
    return picture


def draw(root: Path, **counts: int) -> Path:
    """Class folders ``root/<class>/<i>.png``."""
    for kind, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            part(kind % 3, 100 * (kind // 3) + i).save(root / name / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def messy(tmp_path_factory) -> Path:
    """What people have: three unbalanced classes, many kinds of pictures, and files that are none."""
    root = draw(tmp_path_factory.mktemp("data") / "my parts", **dict(zip(CLASSES, (18, 12, 2), strict=True)))
    place = root / CLASSES[2]
    part(2, 50).convert("L").save(place / "grey.png")
    clear = part(2, 51)
    clear.putalpha(Image.fromarray(np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))))
    clear.save(place / "half clear.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    part(2, 52).transpose(Image.Transpose.ROTATE_90).save(place / "turned.jpg", exif=exif, quality=95)
    Image.fromarray(np.asarray(part(2, 53).convert("L")).astype(np.uint16) * 257).save(place / "deep.png")
    part(2, 54).save(place / "half.jpg")
    (place / "half.jpg").write_bytes((place / "half.jpg").read_bytes()[:500])
    for name in ("phone.jpg", "phone.heic"):
        (place / name).write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(50))
    (place / "notes.txt").write_text("not a picture")
    return root


def command(*arguments):
    return [sys.executable, "-m", "minica", *map(str, arguments)]


@pytest.fixture(scope="module")
def finished(messy, tmp_path_factory):
    """A finished run: its folder, what it printed, and what it warned of."""
    out = tmp_path_factory.mktemp("runs") / "run 1"
    done = subprocess.run(
        command("train", messy, "--out", out, "--preset", "smoke", "--skip-broken"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out, done.stdout, done.stderr


def saved(out: Path) -> dict:
    return json.loads((out / "run.json").read_text(encoding="utf-8"))


# --------------------------------------------------------------------------------------------------------------- train


def test_a_run_folder_has_all_that_is_needed(finished, messy):
    out, shown, warned = finished
    run = saved(out)
    assert run["classes"] == list(CLASSES) and run["skipped"].keys() == LOST
    names = [name for split in ("train", "val", "test") for name in run["splits"][split]]
    assert len(names) == len(set(names)) == 36 and all((messy / name).is_file() for name in names)
    counts = np.array([run["counts"][split] for split in ("train", "val", "test")])
    assert counts.sum(0).tolist() == [18, 12, 6] and counts.min() >= 1
    assert (np.abs(counts - np.outer((0.7, 0.15, 0.15), (18, 12, 6))) <= 1.2).all()
    assert run["settings"].items() >= {"scheme": "residual_parallel", "backbone": "tf_efficientnet_lite0", "size": 64}.items()
    assert [trial["class_weights"] is not None for trial in run["trials"][:3]] == [False, False, True]
    methods = run["metrics"]
    assert list(methods) == ["majority class", "nearest neighbour", "linear probe", "adapters"]
    assert methods["majority class"]["accuracy"] == counts[2][0] / counts[2].sum()
    for found in methods.values():
        for key in ("accuracy", "balanced_accuracy"):
            low, high = found[f"{key}_95"]
            assert 0 <= low <= found[key] <= high <= 1
    assert {"torch", "timm"} <= run["versions"].keys() and "--skip-broken" in run["command"]
    assert minica.adapter_files.read_config(out)["classes"] == list(CLASSES)
    assert not list(out.rglob("*.pt")) and not list(out.glob(".*")), "nothing that only served the training stays"
    assert "trial 4 of 4" in shown and "test accuracy" in shown and "report.html" in shown
    assert "images that do not decode are left out (2)" in warned and "HEIC photographs need pillow-heif" in warned
    assert "1 .heic, 1 .txt" in warned and "step/s" in warned  # the progress bar


def test_broken_pictures_are_all_named_and_nothing_is_written(messy, tmp_path, capsys):
    assert main(["train", str(messy), "--out", str(tmp_path / "run"), "--preset", "smoke"]) == 2
    said = capsys.readouterr().err
    assert "cannot decode 2 images" in said and "half.jpg" in said and "phone.jpg" in said and "--skip-broken" in said
    assert not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from minica import training
from minica.__main__ import main

save = training.save

def dying(folder, *rest):
    save(folder, *rest)
    if folder.name == "final":
        os.kill(os.getpid(), signal.SIGKILL)

training.save = dying
main(sys.argv[1:])
"""


def test_killed_and_resumed_to_the_same_result(finished, messy, tmp_path, capsys):
    arguments = ["train", str(messy), "--out", str(tmp_path / "run"), "--preset", "smoke", "--skip-broken"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "run" / "run.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "trials").glob("rate-*.json")}
    assert len(kept) == 3
    assert main(arguments) == 0
    resumed = capsys.readouterr().out
    assert "trial 4 of 4" in resumed and "trial 3 of 4" not in resumed
    assert all(path.stat().st_mtime_ns == when for path, when in kept.items())
    one, other = saved(finished[0]), saved(tmp_path / "run")
    for run in (one, other):
        run["history"] = [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in run["history"]]
        run["trials"] = [{key: value for key, value in trial.items() if key != "seconds"} for trial in run["trials"]]
        del run["seconds"], run["command"]
    assert one == other
    weights = "adapter_model.safetensors"
    assert (finished[0] / weights).read_bytes() == (tmp_path / "run" / weights).read_bytes()

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    assert main(arguments) == 0 and "nothing is left to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before
    (messy / CLASSES[0] / "0.png").rename(tmp_path / "0.png")
    try:
        assert main(arguments) == 2 and "holds another run, with data" in capsys.readouterr().err
    finally:
        (tmp_path / "0.png").rename(messy / CLASSES[0] / "0.png")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["DATA", "--out", "DATA/run"], "is in the folder of the pictures"),
        (["DATA", "--out", "full"], "holds something else than a run"),
        (["DATA", "--out", "file.txt"], "holds something else than a run"),
        (["DATA", "--out", "run", "--preset", "paper"], "unknown preset 'paper'; choose one of smoke, laptop, gpu"),
        (["DATA", "--out", "run", "--backbone", "resnet5o"], "unknown backbone 'resnet5o'; did you mean"),
        (["nowhere", "--out", "run"], "nowhere does not exist; give a folder of class folders, or a CSV"),
        (
            ["one", "--out", "run"],
            "class 'single' of one has 1 training images, class 'void' of one has 0 .*, but 3 are needed",
        ),
        (["full", "--out", "run"], "no class folders"),
        (["DATA.zip", "--out", "run"], "DATA.zip is neither a folder nor a CSV in UTF-8: an archive must be unpacked first"),
        (["DATA/cats/0.png", "--out", "run"], "0.png is neither a folder nor a CSV in UTF-8"),
        (["DATA", "--out", "file.txt"], "file.txt holds something else than a run"),
        (["DATA", "--out", "full"], "full holds something else than a run"),
    ],
)
def test_what_is_refused_and_touches_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "DATA", cats=3, dogs=3)
    draw(tmp_path / "one", many=4, single=1, void=0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file.txt").write_text("as well")
    (tmp_path / "DATA.zip").write_bytes(b"PK\3\4\xff\xfe")
    before = sorted(tmp_path.rglob("*"))
    smoke = [] if "--preset" in arguments else ["--preset", "smoke"]
    assert main(["train", *arguments, *smoke]) == 2
    shown = capsys.readouterr().err
    assert re.search(f"error: .*{said}", shown), shown
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_in_which_nothing_trains_ends_with_one_line(monkeypatch, capsys):
    def diverges(*arguments, **options):
        raise TrainingDiverged("no learning rate that was tried trains: the loss is nan")

    monkeypatch.setattr("minica.app.run.train_folder", diverges)
    assert main(["train", "photos", "--out", "run"]) == 2
    assert capsys.readouterr().err == "error: no learning rate that was tried trains: the loss is nan\n"


# -------------------------------------------------------------------------------------------------------------- report


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources, self.tags, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for key, value in attributes if key in ("src", "href", "srcset", "data", "action")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_needs_no_network_and_says_all(finished):
    text = (finished[0] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open and page.sources and all(source.startswith("data:image/") for source in page.sources)
    assert "http:" not in text and "https:" not in text and "@import" not in text and "url(" not in text
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert (
        "washer <b>" not in text and "washer &lt;b&gt;" in text and "Mutter &amp; Bolzen" in text and "große Schraube" in text
    )
    assert 'name="viewport" content="width=device-width' in text
    for said in ("majority class", "nearest neighbour", "linear probe", "adapters", "95 % interval", "balanced accuracy"):
        assert said in text
    for said in ("recall", "precision", "taken for", "learning rate", "half.jpg", "1 .heic, 1 .txt", "python -m minica train"):
        assert said in text
    assert page.tags.count("img") >= 25 and len(text) < 2_000_000


def test_of_many_classes_the_report_lists_what_is_confused_most():
    confusion = torch.diag(torch.arange(1, 41))
    confusion[3, 7], confusion[30, 2] = 5, 9
    text = report._matrix([f"class <{i}>" for i in range(40)], confusion)
    assert Page(text).tags.count("tr") == 3 and text.index("class &lt;30&gt;") < text.index("class &lt;7&gt;")


def test_every_shade_of_the_matrix_can_be_read(browser, tmp_path):  # noqa: F811
    page = tmp_path / "matrix.html"
    page.write_text("".join(report._matrix(["a", "b"], torch.tensor([[n, 100 - n], [0, 1]])) for n in range(101)))
    with chrome.watched(browser) as seen:
        seen.page.goto(page.as_uri())
        seen.page.add_script_tag(path=Path(__file__).with_name("page_checks.js"))
        found = seen.page.evaluate("contrasts()")
    assert len(found) > 500 and min(contrast for contrast, _ in found) >= 4.5


def test_the_report_opens_in_a_browser(finished, tmp_path):
    program = chromium_or_fail()
    shot = tmp_path / "phone.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", "--window-size=390,844"]
    subprocess.run([program, *options, (finished[0] / "report.html").as_uri()], capture_output=True, check=True)
    picture = Image.open(shot).convert("L")
    assert picture.size == (390, 844) and np.asarray(picture).std() > 10, "something is written on it"


# ------------------------------------------------------------------------------------------------------------- predict


def rows(text: str) -> list[dict]:
    return list(csv.DictReader(text.splitlines()))


def test_predictions_are_those_of_evaluate(finished, messy, tmp_path, capsys):
    run = saved(finished[0])
    files = [messy / name for name in run["splits"]["test"]]
    assert main(["predict", str(finished[0]), *map(str, files), "--csv", str(tmp_path / "out.csv")]) == 0
    assert f"{len(files)} pictures predicted, 0 failed" in capsys.readouterr().err
    found = rows((tmp_path / "out.csv").read_text(encoding="utf-8"))
    assert list(found[0]) == ["file", "prediction", *CLASSES, "error"]
    assert [row["file"] for row in found] == list(map(str, files)) and not any(row["error"] for row in found)
    assert all(abs(sum(float(row[name]) for name in CLASSES) - 1) < 1e-5 for row in found)
    assert all(row["prediction"] == max(CLASSES, key=lambda name: float(row[name])) for row in found)  # noqa: B023
    right = [row["prediction"] == Path(row["file"]).parent.name for row in found]

    model = load_run(finished[0])
    images = torch.stack([data.decode(file, 64).expand(3, -1, -1) for file in files])
    labels = torch.tensor([CLASSES.index(file.parent.name) for file in files])
    changed = data.transform(64, **minica.normalization(model))
    accuracy = minica.evaluate(model, data.ImageDataset(images, labels, changed))["accuracy"]
    assert sum(right) / len(right) == accuracy == run["metrics"]["adapters"]["accuracy"]
    logits, _ = minica.predict(model, data.ImageDataset(images, labels, changed))
    scores = torch.tensor([[float(row[name]) for name in CLASSES] for row in found])
    torch.testing.assert_close(logits.softmax(1), scores, rtol=0, atol=1e-5)


def test_prediction_goes_on_past_bad_files(finished, messy, tmp_path, capsys):
    place = messy / CLASSES[2]
    given = [str(messy), str(place / "*.jp*g"), str(tmp_path / "none.png"), str(tmp_path / "*.gif"), str(place / "notes.txt")]
    (tmp_path / "empty").mkdir()
    assert main(["predict", str(finished[0]), *given, str(tmp_path / "empty")]) == 1
    shown = capsys.readouterr()
    found = rows(shown.out)
    failed = {Path(row["file"]).name: row["error"] for row in found if row["error"]}
    assert failed.keys() == {"half.jpg", "phone.jpg", "none.png", "*.gif", "notes.txt", "empty"}
    assert failed["none.png"] == "No such file or directory" and failed["*.gif"] == "no file matches"
    assert "HEIC" in failed["phone.jpg"] and "it is no JPEG" in failed["notes.txt"] and "no picture" in failed["empty"]
    assert all((row["prediction"] == "") == (row["error"] != "") == (row[CLASSES[0]] == "") for row in found)
    assert len(found) == 36 + 2 + 3 + 4  # the folder with its broken ones, the glob, four places without a picture
    assert [row["file"] for row in found[:38]] == sorted(row["file"] for row in found[:38])
    assert "not read because of the ending (1 .heic, 1 .txt)" in shown.err and "37 pictures predicted, 8 failed" in shown.err
    assert all(name in shown.err for name in failed)
    assert main(["predict", str(tmp_path), str(place)]) == 2 and "no adapter in" in capsys.readouterr().err
    for table, said in (
        ("no/out.csv", "its folder does not exist"),
        ("", "it is a folder"),
        ("a.JPG", "is called like a picture"),
    ):
        capsys.readouterr()
        assert main(["predict", str(finished[0]), str(place), "--csv", str(tmp_path / table)]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["predict", str(finished[0])])


def test_an_unfinished_run_is_no_network_yet(tmp_path, capsys):
    (tmp_path / "plan.json").write_text("{}")
    assert main(["predict", str(tmp_path), "new"]) == 2
    assert "holds a run that is not finished; give its train command again" in capsys.readouterr().err


def test_predict_takes_files_or_data(finished, messy, tmp_path):
    model, file = load_run(finished[0]), messy / CLASSES[0] / "0.png"
    (one,) = minica.predict(model, file)
    assert minica.predict(model, [str(file)]) == [{**one, "file": str(file)}]
    assert one["prediction"] in CLASSES and list(one["scores"]) == list(CLASSES) and one["error"] is None
    assert one["scores"][one["prediction"]] == max(one["scores"].values())
    shutil.copy(messy / CLASSES[2] / "grey.png", tmp_path / "grey.png")
    shutil.copy(messy / CLASSES[2] / "deep.png", tmp_path / "deep.PNG")
    assert [Path(record["file"]).name for record in minica.predict(model.bfloat16(), tmp_path)] == ["deep.PNG", "grey.png"]
    with pytest.raises(ValueError, match="does not know classes, input_size, .*minica.fit"):
        minica.predict(minica.adapt(timm.create_model("test_resnet", num_classes=3)), file)
    with pytest.raises(ValueError, match="for images without labels, minica.predict takes their files"):
        minica.predict(timm.create_model("test_resnet", num_classes=3), torch.zeros(2, 3, 32, 32))


def test_classes_that_are_called_like_columns():
    scores = {"error": 0.75, "ok": 0.25}
    text = as_csv([{"file": "a, b.png", "prediction": "error", "scores": scores, "error": None}], ("error", "ok"))
    assert text == 'file,prediction,class error,ok,error\n"a, b.png",error,0.750000,0.250000,\n'


# -------------------------------------------------------------------------------------------------------------- export


def test_an_exported_run_says_what_it_needs(finished, messy, tmp_path, capsys):
    assert main(["export", str(finished[0]), str(tmp_path / "model.onnx")]) == 0
    assert " test pictures: logits differ by at most" in capsys.readouterr().out
    graph = onnx.load(tmp_path / "model.onnx")
    described = json.loads((tmp_path / "model.onnx.json").read_text(encoding="utf-8"))
    assert json.loads({entry.key: entry.value for entry in graph.metadata_props}["minica"]) == described
    assert described["classes"] == list(CLASSES) and not [
        node for node in graph.graph.node if node.op_type == "BatchNormalization"
    ]
    # By the description alone, with Pillow and NumPy.
    model, said = load_run(finished[0]), described["input"]
    file = messy / CLASSES[1] / "3.png"
    pixels = np.asarray(Image.open(file).convert("RGB").resize((said["size"],) * 2, Image.Resampling.BICUBIC)) / 255
    image = ((pixels - said["mean"]) / said["std"]).transpose(2, 0, 1)[None].astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {said["name"]: image})
    (record,) = minica.predict(model, file)
    expected = np.log([record["scores"][name] for name in CLASSES])
    assert np.allclose(logits[0] - logits[0].mean(), expected - expected.mean(), atol=1e-3)
    for name, said in (("no/model.onnx", "is no folder"), ("model.json", "give a name such as model.onnx")):
        assert main(["export", str(finished[0]), str(tmp_path / name)]) == 2
        assert said in capsys.readouterr().err


def test_an_export_is_checked_on_the_pictures_that_are_left(tmp_path):
    draw(tmp_path / "photos", a=2)
    (tmp_path / "photos" / "a" / "half.png").write_bytes((tmp_path / "photos" / "a" / "0.png").read_bytes()[:99])
    names = ["a/half.png", "a/gone.png", "a/0.png", "a/1.png"]
    (tmp_path / "run.json").write_text(json.dumps({"data": str(tmp_path / "photos"), "splits": {"test": names}}))
    known = {"input_size": 16, "resize": "squash", "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert [tuple(image.shape) for image in onnx_file._test_pictures(tmp_path, known)] == [(3, 16, 16)] * 2


# ---------------------------------------------------------------------------------------------- pictures and their splits


def table(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    return path


def test_groups_never_cross_splits(tmp_path):
    draw(tmp_path / "all", a=40, b=20)
    lines = [f"all/a/{i}.png,a,person {i // 4}" for i in range(40)] + [f"all/b/{i}.png,b,person {i % 10}" for i in range(20)]
    pictures = read_pictures(table(tmp_path / "mine.csv", "Path,label,group", *lines), 16)
    group = {line.split(",")[0]: line.split(",")[2] for line in lines}
    people = {split: {group[pictures.names[i]] for i in there} for split, there in pictures.splits.items()}
    assert sum(map(len, people.values())) == 10 and len(set.union(*people.values())) == 10
    counts = np.array([*pictures.counts().values()])
    assert counts.sum(0).tolist() == [40, 20] and counts.min() >= 2 and counts[0].sum() >= 36


def test_splits_of_a_table_are_taken_and_checked(tmp_path):
    draw(tmp_path / "all", a=6, b=6)
    splits = ("train", "train", "valid", "Test", "train", "validation")
    lines = [f"all/{name}/{i}.png,{name},{splits[i]}" for name in "ab" for i in range(6)]
    pictures = read_pictures(table(tmp_path / "mine.csv", "path,label,split,remark", *lines), 16)
    assert pictures.counts() == {"train": [3, 3], "val": [2, 2], "test": [1, 1]} and pictures.classes == ("a", "b")
    assert [pictures.names[i] for i in pictures.splits["test"]] == ["all/a/3.png", "all/b/3.png"]
    grouped = [f"{line},g" if ",train" in line else f"{line},h{i}" for i, line in enumerate(lines)]
    grouped[-1] = grouped[-1].rpartition(",")[0] + ",g"
    with pytest.raises(ValueError, match="groups are in more than one split: g; correct"):
        read_pictures(table(tmp_path / "mine.csv", "path,label,split,group", *grouped), 16)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["path;label", "a.png;a"], "has no column 'path', only path;label; its first line must be path,label"),
        (["path,label"], "has no line below its header"),
        (["path,label", "a.png,"], r"mine.csv:2: the label is empty"),
        (["path,label,split", "a.png,a,eval"], r"mine.csv:2: the split is 'eval'; expected one of train, .*val"),
        (["path,label", '"a.png', "b.png,a"], r"mine.csv:3: the label is empty"),
        (["path,label", "a.png,a", "b.png,a", "a.png,b"], r"mine.csv:4: a.png has label 'b' here and 'a' in line 2"),
        (["path,label", "a.png,nuts, bolts"], r"mine.csv:2: more cells than columns, with ' bolts'; put .* into double quotes"),
        (["path,path,label", "a.png,b.png,a"], "mine.csv has two columns 'path'; rename the one that is not meant"),
        (["path,label", "a\0.png,a"], r"mine.csv:2: the path 'a\\x00.png' holds a NUL character"),
    ],
)
def test_a_table_that_cannot_be_read_is_named(lines, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        read_table(table(tmp_path / "mine.csv", *lines))


def test_a_table_as_spreadsheets_and_windows_write_it(tmp_path):
    draw(tmp_path, a=2)
    (tmp_path / "odd\\name.png").write_bytes((tmp_path / "a" / "0.png").read_bytes())
    rows = ["Path , LABEL,", "a\\0.png,x,", f"{tmp_path}/a/1.png,y,", "odd\\name.png,x,"]
    (tmp_path / "mine.csv").write_bytes("\r\n".join(rows).encode("utf-8-sig"))
    assert [row.path.name for row in read_table(tmp_path / "mine.csv")] == ["0.png", "1.png", "odd\\name.png"]
    assert all(row.path.is_file() for row in read_table(tmp_path / "mine.csv"))
    (tmp_path / "mine.csv").write_bytes("path,label\r\na.png,x".encode("utf-16"))
    with pytest.raises(ValueError, match="mine.csv is neither a folder nor a CSV in UTF-8: .* save the table as CSV in UTF-8"):
        read_table(tmp_path / "mine.csv")


def test_folders_that_may_not_be_opened_are_named(tmp_path, monkeypatch):
    draw(tmp_path / "photos", a=4, b=4)
    (tmp_path / "photos" / "a" / "closed").mkdir()
    scandir = os.scandir

    def closed(place):
        if str(place).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(ValueError, match=r"a/closed cannot be opened \(Permission denied\); make it readable"):
        read_pictures(tmp_path / "photos", 16)
    found = [*prediction._files([tmp_path / "photos"])]
    assert len(found) == 9 and found[-1] == (str(tmp_path / "photos" / "a" / "closed"), "Permission denied")


def test_missing_files_of_a_table_are_named_together_or_skipped(tmp_path):
    draw(tmp_path, a=5, b=5)
    lines = [f"{name}/{i}.png,{name}" for name in "ab" for i in range(6)]
    path = table(tmp_path / "mine.csv", "path,label", *lines, lines[0])
    with pytest.raises(ValueError, match="(?s)cannot decode 2 images.*a/5.png: No such file.*b/5.png: No such file"):
        read_pictures(path, 16)
    pictures = read_pictures(path, 16, skip_broken=True)
    assert pictures.skipped == dict.fromkeys(("a/5.png", "b/5.png"), "No such file or directory") and len(pictures.names) == 10


def test_classes_of_almost_the_same_name_are_noted(tmp_path):
    draw(tmp_path, a=8)
    labels = ("Cat", "cat ", "gro\u00df", "gro\u00df", "u\u0308ber", "\u00fcber", "dog", "dog")
    lines = [f"a/{i}.png,{label}" for i, label in enumerate(labels)]
    path = table(tmp_path / "mine.csv", "path,label", *lines)
    rows = read_table(path)
    assert splits._about_names(sorted({row.label for row in rows})) == [
        "classes have almost the same name: 'Cat' and 'cat'; 'u\u0308ber' and '\u00fcber'. If they are one, give them one name."
    ]
    draw(tmp_path / "photos", Cat=4, cat=4)
    assert any("almost the same name: 'Cat' and 'cat'" in note for note in read_pictures(tmp_path / "photos", 16).notes)
    assert not any("same name" in note for note in read_pictures(draw(tmp_path / "other", cat=4, dog=4), 16).notes)


def test_copies_are_named_and_stay_together(tmp_path):
    root = draw(tmp_path / "parts", a=10, b=10)
    shutil.copy(root / "a" / "0.png", root / "b" / "same.png")
    Image.open(root / "a" / "1.png").save(root / "a" / "again.bmp")  # other bytes, the same pixels
    pictures = read_pictures(root, 64)
    (labels, copies) = pictures.notes
    assert (
        "the same picture has two labels (1): a/0.png (a) = b/same.png (b)" in labels
        and "exact copies of other pictures: 2" in copies
    )
    split = {pictures.names[i]: split for split, there in pictures.splits.items() for i in there}
    assert split["a/0.png"] == split["b/same.png"] and split["a/1.png"] == split["a/again.bmp"]

    for part_, names in (("train", "ab"), ("val", "ab"), ("test", "ab")):
        draw(tmp_path / "split" / part_, **dict.fromkeys(names, 2))
    notes = read_pictures(tmp_path / "split", 64).notes
    (crossing,) = [note for note in notes if "the same picture is in more than one split (4)" in note]
    assert "train/a/0.png (train)" in crossing and "test/a/0.png (test)" in crossing


def test_folders_that_are_split_otherwise_are_noted(tmp_path):
    for split in ("train", "val", "eval"):
        draw(tmp_path / split, a=8 + len(split), b=8)
    notes = read_pictures(tmp_path, 16).notes
    assert any("'eval' has class folders like a split" in note for note in notes)
    assert any("there is no test split: val is taken for the test" in note for note in notes)


def test_drawn_splits_have_their_shares():
    labels = np.repeat([0, 1, 2, 3], (100, 40, 9, 3))
    place = draw_splits(labels, np.arange(len(labels)), (0.7, 0.15, 0.15))
    counts = np.array([np.bincount(labels[place == split], minlength=4) for split in range(3)])
    assert counts[:, :2].tolist() == [[70, 28], [15, 6], [15, 6]] and counts[:, 3].tolist() == [1, 1, 1]
    assert (draw_splits(labels, np.arange(len(labels)), (0.7, 0.15, 0.15)) == place).all()


# ------------------------------------------------------------------------------------------------------------- choices


@pytest.mark.parametrize(
    ("name", "scheme"),
    [("resnet26", "conv_parallel"), ("resnet18", "conv_parallel"), ("mobilenetv2_050", "residual_parallel")],
)
def test_adapters_sit_where_the_network_is_narrow(name, scheme):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert choose_scheme(model)["scheme"] == scheme


def test_weights_of_classes():
    assert class_weights(torch.tensor([0, 0, 1, 1, 1]), 2) is None
    labels = torch.tensor([0] * 6 + [1] * 2)
    weights = torch.tensor(class_weights(labels, 2))
    assert torch.allclose(weights[labels].mean(), torch.tensor(1.0)) and weights[1] == 3 * weights[0]


def test_the_interval_of_balanced_accuracy():
    labels = np.repeat([0, 1], (300, 100))
    right = np.concatenate([np.arange(300) % 10 > 0, np.arange(100) % 2 > 0])  # recalls of 90 and 50 %
    low, high = balanced_interval(right, labels)
    error = np.sqrt(0.9 * 0.1 / 300 + 0.5 * 0.5 / 100) / 2
    assert (low, high) == pytest.approx((0.7 - 1.96 * error, 0.7 + 1.96 * error), abs=0.01)
    few = np.array([0, 0, 0, 1, 1])  # three of three and two of two right: nobody knows that it is always so
    assert balanced_interval(np.ones(5), few) == pytest.approx((0.57, 1), abs=0.005)
    assert balanced_interval(1.0 * (few == 0), few) == pytest.approx((0.5 - 0.28, 0.5 + 0.33), abs=0.005)
