"""Restored views are those that the loss saw."""

import base64
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.store import Store
from manifests.errors import InputError
from training.config import ModelConfig, MultiSSLConfig, OptimiserConfig, RunConfig
from training.inputs import Inputs
from training.model.networks import MultiSSLNetwork
from training.model.patches import patchify
from training.multissl import multissl_losses
from training.report.pictures import reconstruct, restore_views
from training.report.read import read_run
from training.seeds import generator_for


def configured(**changes: Any) -> MultiSSLConfig:
    return MultiSSLConfig(optimiser=OptimiserConfig(epochs=1, batch_size=4, peak_lr=1e-3), **changes)


@pytest.fixture(scope="module")
def network(tiny: ModelConfig) -> MultiSSLNetwork:
    return MultiSSLNetwork(tiny, generator_for(0, "network")).eval()


@pytest.mark.parametrize("changes", [{}, {"hog_weight": False, "mask_ratio": 0.4}, {"sampling": "inverted"}])
def test_losses_are_those_of_the_training_step(network: MultiSSLNetwork, inputs: Inputs, changes: Any) -> None:
    config = configured(**changes)
    with torch.inference_mode():
        terms = multissl_losses(network, inputs, config, generator_for(1, "masks"))
    _, views = restore_views(network, inputs, config, generator_for(1, "masks"))
    for name, view in views.items():
        assert view.loss.shape == (4,)
        torch.testing.assert_close(view.loss.mean(), terms[f"{name}_restore"])


def test_only_hidden_patches_of_the_inter_view_are_the_networks(network: MultiSSLNetwork, inputs: Inputs) -> None:
    _, views = restore_views(network, inputs, configured(), generator_for(1, "masks"))
    inter = views["inter"]
    assert inter.hidden.float().mean() == 0.75
    torch.testing.assert_close(inter.restored[~inter.hidden], inputs.fbank[~inter.hidden], rtol=0, atol=0)
    assert (inter.restored[inter.hidden] != inputs.fbank[inter.hidden]).all()
    patches = patchify(inter.hidden, network.grid)  # a patch is hidden as a whole
    assert (patches.all(2) == patches.any(2)).all()


def test_the_loss_of_saying_the_mean(network: MultiSSLNetwork, inputs: Inputs) -> None:
    """Without weights, and over all patches, it is the mean square of the clip."""
    _, views = restore_views(network, inputs, configured(hog_weight=False), generator_for(1, "masks"))
    torch.testing.assert_close(views["intra"].mean_loss, inputs.fbank.square().mean((1, 2)))


def test_views_that_are_off_are_absent(network: MultiSSLNetwork, inputs: Inputs) -> None:
    both = restore_views(network, inputs, configured(), generator_for(1, "masks"))[1]
    alone = restore_views(network, inputs, configured(intra=False), generator_for(1, "masks"))[1]
    assert list(alone) == ["inter"]
    assert torch.equal(alone["inter"].hidden, both["inter"].hidden)


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))


def test_pictures_of_held_out_clips(finished_run: Path, store: Store) -> None:
    run = read_run(finished_run, "run")
    found = reconstruct(run, 2, seed=3)
    assert found == reconstruct(run, 2, seed=3)
    assert found != reconstruct(run, 2, seed=4)
    assert found.about == "iter1/multissl, step 6 of 6"
    assert {clip.key for clip in found.clips} < set(store.keys(store.rows(split="test")))
    titles = ["truth", "intra-masked", "intra, restored", "inter-masked", "inter, restored", "prior S"]
    for clip in found.clips:
        assert [one.title for one in clip.pictures] == titles
        assert [picture(one.url).shape for one in clip.pictures] == [(128, 256, 3)] * 5 + [(8, 16, 3)]
        hidden = (np.abs(picture(clip.pictures[3].url).astype(int) - (120, 134, 150)) < 12).all(2)
        assert hidden.mean() == pytest.approx(0.75, abs=0.05)
        assert clip.pictures[3].figure == "75.0% hidden"


def test_why_there_are_none(finished_run: Path, tmp_path: Path, config: RunConfig) -> None:
    folder = Path(shutil.copytree(finished_run, tmp_path / "run"))

    def why() -> str:
        with pytest.raises(InputError) as caught:
            reconstruct(read_run(folder, "run"), 2, 0)
        return str(caught.value)

    recorded = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**recorded, "store": str(tmp_path / "gone")}))
    assert why() == f"the store that it was trained on is not there any more ({tmp_path / 'gone'})"
    (folder / "store.json").write_text(json.dumps(recorded))
    unrestored = config.multissl.model_copy(update={"restore": False})
    (folder / "config.json").write_text(config.model_copy(update={"multissl": unrestored}).model_dump_json())
    assert "multissl.restore = false" in why()
    (folder / "config.json").write_text('{"later": 1}')
    assert "not one that this version understands" in why()
    (folder / "iter1" / "multissl" / "last.pt").write_bytes(b"torn")
    assert why() == "this run has no Multi-SSL checkpoint that can be read"
