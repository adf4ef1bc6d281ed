"""The survey's rows are true of small networks of many families; the whole of timm is a command."""

import pytest

from minica import survey

EXPECTED = {
    "test_byobnet": "adapted",
    "test_mambaout": "adapted",
    "test_nfnet": "adapted",
    "test_resnet": "adapted",
    "lcnet_035": "adapted",
    "tinynet_e": "adapted",
    "regnetx_002": "adapted",
    "vgg11": "units only",
    "vit_tiny_patch16_224": "refused",
    "poolformer_s12": "refused",
}


@pytest.mark.parametrize(("architecture", "verdict"), EXPECTED.items())
def test_examine(architecture, verdict):
    row = survey.examine(architecture)
    assert (row["verdict"], row["architecture"]) == (verdict, architecture), row["reason"]
    for found in row["schemes"].values():
        assert found["adapters"] > 0 and found["keys"]
        if row["parameters"] <= survey.NUMERIC_LIMIT:
            assert found["identity"] and found["gradients"]
    assert bool(row["reason"]) == (verdict == "refused")


def test_it_resumes_and_sums_up(tmp_path, capsys):
    survey.survey(["test_resnet"], tmp_path)
    rows = survey.survey(["test_resnet", "mixer_s32_224"], tmp_path)
    assert capsys.readouterr().out.count("test_resnet:") == 1, "what is in the table is not examined again"
    table = survey.summary(rows)
    assert "| resnet | 1 | 1 | 0 | 0 | 0 |" in table and "| all | 2 | 1 | 0 | 1 | 0 |" in table


def test_a_failure_is_a_row(monkeypatch):
    monkeypatch.setattr(survey, "plain_anatomy", lambda model: 1 / 0)
    row = survey.examine("test_resnet")
    assert row["verdict"] == "failed" and row["reason"].startswith("ZeroDivisionError")
