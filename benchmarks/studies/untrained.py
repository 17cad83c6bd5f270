"""Studies without training: corrupted films (robustness), and voxel size and surface offset (resolution)."""

from __future__ import annotations

import zlib

import numpy as np
import pandas as pd

from benchmarks.studies import corruptions, voxelisation
from benchmarks.studies.experiments import Plan, chosen_variants
from transvert import levels
from transvert.data.fetch import fetch_subjects
from transvert.io import InputError
from transvert.model import evaluate
from transvert.model.predict import predict

SPACINGS_MM = (1.5, 1.0, 0.75, 0.5)
OFFSETS_MM = (0.25, 0.5, 0.75, 1.0, 1.5)


def robustness(plan: Plan) -> pd.DataFrame:
    """Tests weights on corrupted films of the subjects that they were not trained on.

    Raises:
        InputError: unknown variant, no weights, or no subject to test on.
    """
    kinds, tables = chosen_variants(plan, corruptions.KINDS), []
    for fold, network, card, subject in evaluate.iterate_unseen(plan.store, plan.weights):
        for crop in (False, True) if subject.field_of_view == "full" else (True,):
            for kind, amount in ((k, a) for k in dict.fromkeys(["none", *kinds]) for a in corruptions.KINDS[k].amounts):
                corruption = corruptions.KINDS[kind].make(amount)
                images, shifts_mm = corruptions.corrupt_images(subject, corruption, crop=crop, seed=plan.seed)
                predicted = corruptions.shift_back(predict(network, images, mirror=True), shifts_mm)
                table = evaluate.score_samples(subject, predicted).assign(variant=kind, amount=amount, fold=fold)
                about = {"tested_on": "crop" if crop else "full", "unit": corruptions.KINDS[kind].unit}
                tables.append(table.assign(network=card["network"], **about))
        plan.log(f"{subject.subject}: {len(subject)} vertebrae tested with every corruption.")
    return pd.concat(tables, ignore_index=True)


def resolution(plan: Plan) -> pd.DataFrame:
    """Measures the Dice of perfect shapes on coarse voxels, and of shapes with an offset surface.

    Raises:
        InputError: unknown variant or manifest, or no bone is known finely enough.
    """
    chosen = chosen_variants(plan, ("own voxels", "other voxels", "surface offset"))
    offsets = tuple(sign * mm for mm in OFFSETS_MM for sign in (1, -1))
    rows = []
    for name in plan.data.split(","):
        for subject in fetch_subjects(name.strip()):
            for level, source, surface in voxelisation.solids(subject):
                seed = zlib.crc32(f"{subject.name}/{level}/{plan.seed}".encode())
                costs = voxelisation.voxel_cost(surface, SPACINGS_MM, np.random.default_rng(seed))
                found = [("own voxels", mm, own) for mm, (own, _) in zip(SPACINGS_MM, costs, strict=True)]
                found += [("other voxels", mm, other) for mm, (_, other) in zip(SPACINGS_MM, costs, strict=True)]
                moved = zip(offsets, voxelisation.offset_cost(surface, offsets), strict=True)
                found += [("surface offset", mm, dice) for mm, dice in moved]
                about = {"subject": subject.name, "level": levels.name(level), "source": source, "unit": "mm"}
                rows += [{"variant": v, "amount": mm, "dice": d, **about} for v, mm, d in found if v in chosen]
                plan.log(f"{subject.name} {levels.name(level)}: measured.")
    if not rows:
        raise InputError(f"No bone of {plan.data} is known finely enough; use manifests with surfaces or fine masks.")
    return pd.DataFrame(rows)
