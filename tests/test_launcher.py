"""Several processes from a notebook: the example in the documentation, run in a kernel."""

import socket
import textwrap

import nbformat
import torch
from nbclient import NotebookClient

import minica
from minica import experiments

CONFIG = dict(
    data="solar-cells",
    task="defect",
    train_size=64,
    augment="none",
    size=32,
    backbone="tf_efficientnet_lite0",
    method="conv_adapter",
    options=dict(scheme="residual_parallel", compression=4),
    epochs=2,
    lr=1e-3,
    weight_decay=1e-2,
    batch_size=16,
    seed=0,
)


def test_the_example_trains_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # two processes do not share one GPU
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    example = textwrap.dedent(experiments.runs.__doc__.partition("::\n\n")[2])
    assert example.count("num_processes=2") == 1
    # In the earlier cell the notebook computes with several threads, as most notebooks do.
    first = f"""
        import os, accelerate, torch, minica
        from minica import experiments
        torch.set_num_threads(2)
        torch.randn(1000, 1000) @ torch.randn(1000, 1000)
        config = {CONFIG!r}
    """
    cells = [textwrap.dedent(first), example.replace("num_processes=2", f"num_processes=2, use_port='{port}'")]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}).execute()

    model, task = experiments.prepare(CONFIG)
    images = torch.stack([task.test[i][0] for i in range(32)])
    before = model.eval()(images)
    minica.fit(model, task.train, progress=False, **experiments.training_options(CONFIG))
    shared = minica.load_adapter(minica.create_backbone(CONFIG["backbone"], num_classes=2), tmp_path / "my-adapter")
    assert (model(images) - before).abs().max() > 0.05, "something was learned"
    torch.testing.assert_close(shared(images), model(images), rtol=0, atol=0.01)
