"""Records beside the paper's numbers: fed with the paper's own results, our rows are the paper's."""

import re

import pytest

from minica import experiments
from minica.__main__ import main
from minica.data import CATALOGUE
from minica.experiments import paper
from minica.experiments.comparison import SCHEME_TUNING, TUNING, paper_table
from minica.tasks.classification import MONITORS

METHODS = {name: ("conv_adapter", {"scheme": scheme, "compression": 4}) for scheme, name in SCHEME_TUNING.items()}
METHODS |= {name: (method, {}) for method, name in TUNING.items()}
DATA = {(facts.group, facts.paper): data for data, facts in CATALOGUE.items()}


def final(backbone, tuning, data, accuracy, seed=0, trainable=1_000_000, **changes):
    method, options = METHODS[tuning]
    config = {"data": data, "backbone": backbone, "method": method, "options": options, "lr": 1e-3, "weight_decay": 0.0}
    config |= {"epochs": 100, "phase": "final", "seed": seed, **changes}
    return {"config": config, "selection": {"val": 0.5}, "trainable": trainable, "test": dict.fromkeys(MONITORS, accuracy)}


def papers_own(*numbers):
    """The paper's per-task results as if they were records of two seeds, one standard deviation apart from the mean."""
    return [
        final(cell["model"], cell["tuning"], DATA[cell["group"], cell["dataset"]], (cell["mean"] + side) / 100, seed)
        | {"trainable": round(cell["params"] * 1e6)}
        for number in numbers
        for cell in paper.table(number)
        for seed, side in enumerate((-cell["std"] / 2**0.5, cell["std"] / 2**0.5))
    ]


def rows(text):
    """{row: (paper's cells, ours)}, and what stands below the table."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    found = {}
    for printed, ours in zip(lines[2::2], lines[3::2], strict=True):
        name = printed.index("paper")
        assert ours[name] == "ours"
        found[" ".join(printed[:name])] = (printed[name + 1 :], ours[name + 1 :])
    return found, [line for line in text.splitlines() if not line.startswith("|")]


@pytest.mark.parametrize("number", [11, 12, 13, 14])
def test_each_cell_stands_under_the_papers(number):
    found, below = rows(paper_table(number, papers_own(number)))
    assert len(found) == 8
    for printed, ours in found.values():
        assert printed == ours and len(printed) == (5 if number < 13 else 20)
        assert re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", ours[1])
    assert below == ["", "Ours: test accuracy, mean ± standard deviation over seeds (2)."]


def test_groups_are_averaged_as_the_paper_does():
    found, _ = rows(paper_table(1, papers_own(11, 13)))
    for tuning, (printed, ours) in found.items():
        if tuning not in ("Res. Par.", "Res. Seq."):  # whose printed sizes are not the mean of Tables 11 and 13
            assert float(ours[0]) == pytest.approx(float(printed[0]), abs=0.011)
        for column, (theirs, mine) in enumerate(zip(printed[1:], ours[1:], strict=True)):
            mean, wins = re.fullmatch(r"(\S+)(?: ± \S+)?(?: (\(\d\)))?", mine).groups()
            assert float(mean) == pytest.approx(float(theirs.split()[0]), abs=0.011), (tuning, column)
            if (tuning, column) not in {("LP", 0), ("Conv. Par.", 2)}:  # where the paper disagrees with itself: test_paper.py
                assert theirs.partition(" ")[2] == (wins or "")
    conv, _ = rows(paper_table(2, papers_own(11, 13)))
    assert conv["ImageNet 21k ResNet50 BiT-M CA"][1] == found["Conv. Par."][1]
    assert conv["ImageNet 21k Swin-B CA"][1] == ["-"] * 5


def test_few_shot_is_a_mean_over_five_data_sets():
    few = [data for data in CATALOGUE if data.startswith("few-shot/")]
    records = [
        final("convnext-b-in21k", "VPT", data, 0.1 * shots + 0.01 * place + 0.002 * seed, seed, shots=shots)
        for shots in (1, 4)
        for place, data in enumerate(few)
        for seed in range(3)
    ]
    found, below = rows(paper_table(3, records))
    # By hand: 100 * (0.1 + 0.01 * mean of 0..4 + 0.002 * mean of 0..2), and 0.2 between the seeds.
    assert found["ConvNext-B VPT"][1] == ["-", "12.20 ± 0.20", "-", "42.20 ± 0.20", "-"]
    assert any("; ConvNext-B VPT, 2 shots; ConvNext-B VPT, 8 shots; " in line for line in below if line.startswith("Nothing"))
    assert found["ConvNext-B FT"] == (["87.68", "36.34", "48.83", "63.69", "76.91"], ["-"] * 5)


def test_what_is_missing_is_named():
    records = [record for record in papers_own(11) if record["config"]["data"] != "fgvc/dogs"]
    broken = {"config": {"data": "fgvc/dogs", "phase": "tune"}, "error": "ValueError: no folder of fgvc/dogs."}
    text = paper_table(1, [*records, broken])
    found, below = rows(text)
    assert found["FT"][1] == ["-"] * 5  # a group's mean without one of its data sets would be another number
    assert any(line.startswith("Not recorded yet, FT: fgvc/dogs, vtab/") for line in below)
    assert below[-1] == f"1 of {len(records) + 1} trials failed, the first with ValueError: no folder of fgvc/dogs."
    assert rows(paper_table(11, records))[0]["FT"][1][1] == "84.51 ± 0.08"


def test_several_choices_and_several_recipes():
    better = final("resnet50-in21k-bit-m", "FT", "fgvc/cub200", 0.7, lr=5e-4) | {"selection": {"val": 0.6}}
    records = [final("resnet50-in21k-bit-m", "FT", "fgvc/cub200", 0.8), better]
    assert rows(paper_table(11, records))[0]["FT"][1][1] == "70.00", "chosen on validation, not on test"
    records.append(final("resnet50-in21k-bit-m", "FT", "fgvc/cub200", 0.9, seed=1, epochs=1))
    with pytest.raises(ValueError, match="FT on fgvc/cub200 with epochs 1 and 100; name the folder of one sweep"):
        paper_table(11, records)


def test_timm_names_of_the_papers_backbones_count_as_well():
    records = [final("resnetv2_50x1_bit.goog_in21k", "FT", "fgvc/cub200", 0.75)]
    assert rows(paper_table(11, records))[0]["FT"][1][1] == "75.00"


def test_the_command(tmp_path, capsys):
    for record in papers_own(11):
        experiments.add_record(tmp_path / "one" / "sweep", record)
    assert main(["table", "11", "--records", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == paper_table(11, papers_own(11)).strip()
    assert main(["table", "4", "--records", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "error: records can fill Tables 1, 2, 3, 11, 12, 13, 14 of the paper, not 4.\n"
    (tmp_path / "half.json").write_text('{"config": {')
    assert main(["table", "11", "--records", str(tmp_path)]) == 2
    assert "half.json is not the record of a trial" in capsys.readouterr().err
