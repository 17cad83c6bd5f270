"""The DRR engines that are Python libraries, and the list of all engines."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.speed.engine import (
    SAMPLES,
    THREADS,
    Engine,
    Job,
    as_seen_from_the_source,
    clocked,
    middle,
    source_to_detector_mm,
)
from benchmarks.speed.plastimatch import Plastimatch, PlastimatchUniform
from transvert.drr.geometry import View
from transvert.imaging.volume import Volume


class Transvert(Engine):
    name = "transvert"
    packages = ("transvert", "numba")

    def __init__(self, volume: Volume, folder: Path) -> None:
        self.volume = volume

    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        import numba

        from transvert.drr.projector import cast, cast_batch

        def project() -> np.ndarray:
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            if len(views) == 1:
                return cast(self.volume, views[0])[None]
            return cast_batch(self.volume, views)

        return clocked(project)


class Rtk(Engine):
    name = "RTK"
    packages = ("itk-rtk",)

    def __init__(self, volume: Volume, folder: Path) -> None:
        os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(THREADS)  # Read when itk is loaded.
        import itk

        self.voxels = np.ascontiguousarray(volume.data.T)
        self.image = itk.image_view_from_array(self.voxels)
        self.image.SetSpacing(volume.spacing_mm.tolist())
        self.image.SetOrigin(volume.affine[:3, 3].tolist())

    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        import itk
        from itk import RTK

        stack_type = itk.Image[itk.F, 3]
        geometry = _rtk_geometry(views)
        (rows, columns), (row_mm, column_mm) = views[0].shape, views[0].pixel_mm

        def project() -> np.ndarray:
            stack = RTK.ConstantImageSource[stack_type].New()
            stack.SetOrigin([-(columns - 1) / 2 * column_mm, -(rows - 1) / 2 * row_mm, 0.0])
            stack.SetSpacing([column_mm, row_mm, 1.0])
            stack.SetSize([columns, rows, len(views)])
            stack.SetConstant(0.0)
            projector = RTK.JosephForwardProjectionImageFilter[stack_type, stack_type].New()
            projector.SetGeometry(geometry)
            projector.SetInput(0, stack.GetOutput())
            projector.SetInput(1, self.image)
            if threads == 1:
                projector.SetNumberOfWorkUnits(1)
            projector.Update()
            # RTK counts rows upwards.
            return itk.array_from_image(projector.GetOutput())[:, ::-1]

        return clocked(project)


class Nanodrr(Engine):
    name = "nanodrr"
    packages = ("nanodrr", "torch")

    def __init__(self, volume: Volume, folder: Path) -> None:
        from nanodrr.data import Subject

        self.subject = Subject.from_images(_torchio_image(volume), convert_to_mu=False)

    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        import torch
        from nanodrr.camera import make_k_inv
        from nanodrr.drr import DRR

        torch.set_num_threads(threads)
        views, step = as_seen_from_the_source(views)
        (rows, columns), (row_mm, column_mm) = views[0].shape, views[0].pixel_mm
        # A parallel ray ends at the detector, so the detector must stand behind the volume.
        length = source_to_detector_mm(views[0]) or 2000.0
        behind = 0.0 if views[0].source is not None else length / 2
        cameras = torch.from_numpy(np.stack([_camera(view, length, behind) for view in views])).float()
        inverse = make_k_inv(length, column_mm, row_mm, 0.0, 0.0, rows, columns).expand(len(views), -1, -1)
        lengths = torch.full((len(views),), length)
        projector = DRR(inverse, lengths, rows, columns, orthographic=views[0].source is None)

        def project() -> np.ndarray:
            with torch.inference_mode():
                return projector(self.subject, cameras, n_samples=SAMPLES)[:, 0].numpy()[..., ::step]

        return clocked(project)


class Diffdrr(Engine):
    name = "diffdrr"
    packages = ("diffdrr", "torch")
    does_parallel = False

    def __init__(self, volume: Volume, folder: Path) -> None:
        import torch
        from torchio import Subject

        image = _torchio_image(volume)
        self.subject = Subject(volume=image, density=image, mask=None, reorient=torch.eye(4))

    def prepare(self, views: Sequence[View], threads: int = THREADS) -> Job:
        import torch
        from diffdrr.drr import DRR
        from diffdrr.pose import RigidTransform

        torch.set_num_threads(threads)
        views, step = as_seen_from_the_source(views)
        (rows, columns), (row_mm, column_mm) = views[0].shape, views[0].pixel_mm
        length = source_to_detector_mm(views[0])
        # Rows and columns of diffdrr run against the detector's axes.
        against = np.diag([-1.0, -1.0, 1.0, 1.0])
        poses = np.stack([_camera(view, length, 0.0) @ against for view in views])
        pose = RigidTransform(torch.from_numpy(poses).float())
        # diffdrr's own option for large pictures: 16 pieces for 1024 x 1024 pixels.
        piece = 256 if rows > 512 else None
        projector = DRR(self.subject, length, rows, column_mm, columns, row_mm, renderer="trilinear", patch_size=piece)

        def project() -> np.ndarray:
            with torch.inference_mode():
                return projector(pose, n_points=SAMPLES)[:, 0].numpy()[..., ::step]

        return clocked(project)


ENGINES: tuple[type[Engine], ...] = (Transvert, Rtk, Nanodrr, Diffdrr, Plastimatch, PlastimatchUniform)


def _camera(view: View, length: float, behind: float) -> np.ndarray:
    """(4, 4) camera to RAS mm: columns, rows and rays along its axes, the detector `length` before its origin."""
    row_mm, column_mm = view.pixel_mm
    camera = np.eye(4)
    camera[:3, :3] = np.stack([view.column_step / column_mm, view.row_step / row_mm, view.direction], axis=1)
    camera[:3, 3] = middle(view) + (behind - length) * view.direction
    return camera


def _torchio_image(volume: Volume) -> Any:
    import torch
    from torchio import ScalarImage

    return ScalarImage(tensor=torch.from_numpy(volume.data)[None], affine=volume.affine)


def _rtk_geometry(views: Sequence[View]) -> Any:
    """Views in RTK's geometry, in which detector coordinates are 0 at a picture's middle and grow to its top."""
    from itk import RTK

    cone, parallel = (RTK.ThreeDCircularProjectionGeometry.New() for _ in range(2))
    for view in views:
        row_mm, column_mm = view.pixel_mm
        across, up, centre = view.column_step / column_mm, -view.row_step / row_mm, middle(view)
        source = centre - 1000.0 * view.direction if view.source is None else view.source
        if not cone.AddProjection(source.tolist(), centre.tolist(), across.tolist(), up.tolist()):
            raise RuntimeError(f"RTK refuses the view {view.name}.")
        # A distance of 0 between source and detector stands for parallel rays. It can only be given with angles.
        angles = [cone.GetGantryAngles()[-1], cone.GetOutOfPlaneAngles()[-1], cone.GetInPlaneAngles()[-1]]
        gantry, out_of_plane, in_plane = np.rad2deg(angles).tolist()
        shift = float(centre @ across), float(centre @ up)
        parallel.AddProjection(1000.0, 0.0, gantry, *shift, out_of_plane, in_plane, *shift)
    return parallel if views[0].source is None else cone
