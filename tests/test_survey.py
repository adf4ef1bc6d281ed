"""The survey's rows are true of a small network of every family; the whole of timm is a command, and its table is committed."""

import re
from pathlib import Path

import pytest
import timm

from minica import experiments
from minica.experiments import survey

ROOT = Path(__file__).parent.parent
ROWS = [*experiments.read_records(experiments.RESULTS / "survey.json", by="architecture").values()]

# The smallest architecture of every family (file) of timm, by what is expected of it.
ADAPTED = """
    test_byobnet test_coatnet convmixer_768_32 test_convnext cpubone_nano cs3darknet_focus_s csatv2 cspnext_tiny
    davit_tiny dla46x_c test_nfnet dpn48b test_resnet edgenext_xx_small efficientformerv2_s0 test_efficientnet efficientvim_m1
    efficientvit_b0 efficientvit_m0 fasternet_t0 fastvit_t8 lcnet_035 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b
    hgnetv2_b0 hrnet_w18_small iformer_t inception_next_atto inception_resnet_v2 lcnetv2_small legacy_seresnet18
    legacy_xception lowformer_b0 test_mambaout mobilenetv5_base mobilevit_xxs nasnetalarge nextvit_small pnasnet5large
    regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnetv2_18 rexnet_100 shvit_s1 skresnet18 starnet_s050
    swiftformer_xs swin_tiny_patch4_window7_224 tiny_vit_5m_224 tresnet_m visformer_tiny vitamin_small_224 xception41p
    """.split()
UNITS_ONLY = """
    coat_tiny densenet121 ese_vovnet19b_slim_dw inception_v3 inception_v4 mvitv2_tiny pvt_v2_b0 rdnet_tiny selecsls42
    twins_svt_small vgg11 xcit_nano_12_p8_224
    """.split()
REFUSED = """
    test_vit halonet_h1 beit_base_patch16_224 poolformerv2_s12 cait_xxs24_224 convit_tiny crossvit_tiny_240 deepseek_vit_412m
    deit_tiny_patch16_224 efficientformer_l1 vit_tiny_patch16_dinov3_qkvb gemma4_vit_167m_enc gmlp_ti16_224 hiera_tiny_224
    sam2_hiera_tiny levit_128s naflexvit_base_patch16_parfac_gap nest_tiny pit_ti_224 qwen3_vit_88m samvit_base_patch16_224
    sequencer2d_s swinv2_tiny_window8_256 swinv2_cr_tiny_224 test_vit_relpos tnt_s_legacy_patch16_224 vit_tiny_r_s16_p8_224
    volo_d1_224
    """.split()
EXPECTED = (
    dict.fromkeys(ADAPTED, "adapted")
    | dict.fromkeys(UNITS_ONLY, "units only")
    | dict.fromkeys(REFUSED, "refused")
    | {"convformer_s18": "adapted", "vit_small_r26_s32_224": "adapted"}  # families with and without convolutions
)


@pytest.mark.parametrize(("architecture", "verdict"), EXPECTED.items())
def test_examine(architecture, verdict):
    row = survey.examine(architecture)
    assert (row["verdict"], row["architecture"]) == (verdict, architecture), row["reason"]
    assert bool(row["reason"]) == (verdict == "refused")
    if verdict != "refused":
        assert len(row["schemes"]) == (4 if verdict == "adapted" else 2)
        assert row["units"] > 0 and (row["blocks"] > 0) == (verdict == "adapted")
        for found in row["schemes"].values():
            assert found["adapters"] > 0 and found["keys"]
            if row["parameters"] <= survey.NUMERIC_LIMIT:
                assert found["identity"] and found["gradients"]


def test_it_resumes_and_sums_up(tmp_path, capsys):
    survey.examine_all(["test_resnet"], tmp_path / "survey.json")
    rows = survey.examine_all(["test_resnet", "mixer_s32_224"], tmp_path / "survey.json")
    assert capsys.readouterr().out.count("test_resnet:") == 1, "what is in the table is not examined again"
    table = survey.summary(rows)
    assert "| resnet | 1 | 1 | 0 | 0 | 0 | 70% |" in table and "| all | 2 | 1 | 0 | 1 | 0 | 70% |" in table
    assert "| adapted in all four schemes | 1 | resnet |" in survey.overview(rows)


def test_a_failure_is_a_row(monkeypatch):
    monkeypatch.setattr(survey, "find_parts", lambda model: 1 / 0)
    row = survey.examine("test_resnet")
    assert row["verdict"] == "failed" and row["reason"].startswith("ZeroDivisionError")


def test_what_hangs_is_a_row(monkeypatch, tmp_path):
    monkeypatch.setattr(survey, "PATIENCE", 0.01)
    (row,) = survey.examine_all(["test_resnet"], tmp_path / "survey.json")
    assert row["verdict"] == "failed" and row["reason"].startswith("no answer within 0.01 s")


# ---------------------------------------------------------------- the committed table


def test_nothing_failed():
    assert not [row["architecture"] for row in ROWS if row["verdict"] == "failed"]
    for row in ROWS:
        assert row["verdict"] in survey.VERDICTS and row["seconds"] >= 0
        if row["verdict"] != "refused":
            between = {key: found["adapters"] for key, found in row["schemes"].items()}
            assert between["conv_parallel"] == between["conv_sequential"] >= row["units"] > 0
            if row["verdict"] == "adapted":
                assert between["residual_parallel"] == between["residual_sequential"] >= row["blocks"] > 0
            assert all(all(found.values()) for found in row["schemes"].values())


def test_every_architecture_is_in_the_table():
    pinned = re.search(r"^timm==(\S+)", (ROOT / "constraints.txt").read_text(), re.M)[1]
    if timm.__version__ != pinned:
        pytest.skip(f"the table is of timm {pinned}, this is {timm.__version__}")
    assert {row["architecture"] for row in ROWS} == set(timm.list_models())
    assert {row["family"] for row in ROWS} == {row["family"] for row in ROWS if row["architecture"] in EXPECTED}
