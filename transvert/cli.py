"""The command line: `transvert --help`."""

from __future__ import annotations

import errno
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from transvert import __version__
from transvert.io import InputError, check_writable, sha256

app = typer.Typer(
    help="From two orthogonal radiographs to a standing spine in 3D: a reproducible companion to TransVert.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Out = Annotated[Path, typer.Option(help="Output folder.", callback=check_writable)]
Weights = Annotated[
    str,
    typer.Option(help="Weights file (.safetensors), or research (research-only licence). Default: the shipped ones."),
]
Scheduler = Annotated[str, typer.Option(help="Address of a Dask scheduler. Default: this computer's cores.")]
Store = Annotated[str, typer.Argument(help="Sample store: a folder, or an address such as s3://bucket/store.")]
FULL = (errno.ENOSPC, errno.EDQUOT)
UNWRITABLE = (*FULL, errno.EROFS, errno.EACCES, errno.EPERM)
SOURCES = "Folders in VerSe's layout, folders of TotalSegmentator output, names of data manifests, or YAML files"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"transvert {__version__}")
        raise typer.Exit


@app.callback()
def _start(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of all commands."""


@app.command()
def reproduce(
    params: Annotated[str, typer.Argument(help="Parameter set: a YAML file, or a name in params/.")] = "demo",
    start: Annotated[str, typer.Option("--from", help="First notebook to run: 01, 02, 03 or 04.")] = "",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="Values of a parameter, such as seed=0,1,2: one run per value. Repeat for combinations."),
    ] = None,
    scheduler: Scheduler = "",
) -> None:
    """Run the four notebooks in order, once or for a grid of parameters, and print the results."""
    from transvert import runs, workflow

    parameters = workflow.read_parameters(params)
    folder = runs.run_folder(parameters["run"])
    if sweep:
        table = workflow.sweep(parameters, workflow.read_grid(sweep), start=start, scheduler=scheduler)
        typer.echo(f"\n{table.to_string(index=False)}\n\nWrote {folder / 'sweep.csv'}")
        sys.exit(int(table["failed"].any()))
    summary = workflow.reproduce(parameters, start=start or "01", command=f"transvert reproduce {shlex.quote(params)}")
    if summary.failed:
        sys.exit(1)
    typer.echo(f"\n{workflow.describe(summary)}\n\nWrote {folder}")


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="Data manifest: a name in data_manifests/, or a YAML file.")] = "embedded",
) -> None:
    """Show a data set's licence and size, then download and verify it. Run it again to complete it."""
    from transvert.data.fetch import cache_folder, fetch_subjects
    from transvert.data.manifest import load_manifest

    found = load_manifest(name)
    terms = {"Licence": found.licence, "Access": found.access, "Cite": found.citation, "Note": found.note}
    typer.echo(found.title)
    typer.echo("\n".join(f"{term}: {' '.join(text.split())}" for term, text in terms.items() if text))
    size = sum(file.bytes or 0 for file in found.files) + sum(archive.bytes or 0 for archive in found.archives)
    typer.echo(f"Size: {size / 1e6:.1f} MB" if size else "Size: not stated")
    subjects = fetch_subjects(found)
    for subject in subjects[:20]:
        typer.echo(f"  {subject.name}: {', '.join(sorted(path.name for path in subject.files))}")
    if len(subjects) > 20:
        typer.echo(f"  and {len(subjects) - 20} more, {len(subjects)} subjects in all")
    typer.echo(f"Stored in {found.folder or cache_folder()}")


@app.command()
def synthesize(
    sources: Annotated[list[str], typer.Argument(help=f"{SOURCES}.")],
    out: Annotated[str, typer.Option(help="Store to write: a folder, or s3://bucket/store.", callback=check_writable)],
    projection: Annotated[str, typer.Option(help="Projection: parallel or cone.")] = "parallel",
    field_of_view: Annotated[str, typer.Option(help="full: whole CT. crop: a 96 mm cube per vertebra.")] = "full",
    bodies: Annotated[
        int, typer.Option(min=0, help="Painted bodies of each subject. 0: its CT, or one body where there is none.")
    ] = 0,
    scheduler: Scheduler = "",
    workers: Annotated[int, typer.Option(min=0, help="Worker processes on this computer. 0: as many as fit.")] = 0,
) -> None:
    """Project radiographs of many CTs and write training samples into a store. Run it again to complete a store."""
    from transvert.data import synthesis
    from transvert.data.subjects import find_subjects

    for note in synthesis.synthesize(
        find_subjects(sources),
        out,
        projection=projection,
        field_of_view=field_of_view,
        bodies=bodies,
        scheduler=scheduler,
        workers=workers,
    ):
        typer.echo(note)
    typer.echo(f"Wrote {out}")


@app.command()
def train(
    store: Store,
    out: Out,
    split: Annotated[
        str,
        typer.Option(
            help="Held-out subjects. subjects: every fifth; all: none; official: the published test sets; loso: each "
            "in turn, one training each; loso:NAME: this one; folds:K: K groups in turn; folds:K:N: group N; or a CSV "
            "in data_manifests/splits."
        ),
    ] = "subjects",
    network: Annotated[str, typer.Option(help="transvert_hull, or transvert (the paper's form).")] = "transvert_hull",
    augmentation: Annotated[str, typer.Option(help="films: as clinical radiographs vary. drr: clean DRRs.")] = "films",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    batch: Annotated[int, typer.Option(help="Samples per step and process.")] = 6,
    seed: Annotated[int, typer.Option(help="Random seed of weights and augmentation.")] = 0,
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over instead of resuming.")] = False,
) -> None:
    """Train a network on a sample store. Run it again to resume an interrupted training."""
    from transvert.model.augment import AUGMENTATIONS
    from transvert.model.evaluate import describe_dice
    from transvert.model.train import Recipe, train_folds

    if augmentation not in AUGMENTATIONS:
        raise InputError(f"'{augmentation}' is not an augmentation; use {' or '.join(AUGMENTATIONS)}.")
    ranges = AUGMENTATIONS[augmentation]
    recipe = Recipe(network, steps=steps, epoch_steps=200, batch=batch, augmentation=ranges, seed=seed)
    table = train_folds(store, split, recipe, out, resume=not fresh)
    if len(table):
        typer.echo(f"{describe_dice(table)} of {table['subject'].nunique()} held-out subjects.")
    if os.environ.get("RANK", "0") == "0":  # torchrun starts one process per GPU.
        typer.echo(f"Wrote {out}")


@app.command()
def evaluate(
    sources: Annotated[list[str], typer.Argument(help=f"{SOURCES}; or one sample store.")],
    out: Out,
    weights: Weights = "",
) -> None:
    """Measure Dice, HD95, ASSD and NSD of every whole vertebra, from its CT or a phantom painted from its mask."""
    from transvert.data.store import group_names, read_index
    from transvert.data.subjects import find_subjects
    from transvert.model.evaluate import describe_dice, evaluate_subjects, score_store
    from transvert.model.networks import load_network
    from transvert.runs import write_table

    network, card = load_network(weights)
    if len(sources) == 1 and group_names(sources[0]):
        table = score_store(sources[0], read_index(sources[0]), network)
        write_table(out / "metrics.csv", table)
    else:
        table = evaluate_subjects(find_subjects(sources), network, out)
    typer.echo(table.to_string(index=False, float_format="{:.3f}".format))
    typer.echo(f"{describe_dice(table)}, network {card['network']}.")
    if "licence" in card:
        typer.echo(f"The weights' licence: {card['licence']}.")
    typer.echo(f"Wrote {out / 'metrics.csv'}")


@app.command()
def calibrate(
    store: Store,
    folds: Annotated[
        Path, typer.Argument(help="A weights file, or the output folder of `transvert train STORE --split folds:K`.")
    ],
    out: Out,
) -> None:
    """Calibrate the error estimates of networks on people they did not learn from: calibration.json and tables.

    In Python, transvert.model.networks.add_to_card writes a calibration into a weights file.
    """
    from transvert.model import calibration
    from transvert.model.evaluate import iterate_unseen

    unseen = iterate_unseen(store, folds)
    cases = [case for _, network, _, subject in unseen for case in calibration.measure_vertebrae(network, subject)]
    found = calibration.make_report(cases)
    calibration.write_reliability(found, out)
    summary = "\n".join(f"{name}: {value:.3g}" for name, value in found.summary.items())
    typer.echo(f"{summary}\nWrote {out}")


@app.command()
def detect(
    ap: Annotated[Path, typer.Option(help="AP or PA radiograph: DICOM, PNG, JPEG or TIFF.")],
    lateral: Annotated[Path, typer.Option(help="Lateral radiograph.")],
    out: Annotated[Path, typer.Option(help="Landmark file to write (JSON).")],
    landmarks: Annotated[
        Path | None, typer.Option(help="Landmark file that says how the films were taken. Default: as their files say.")
    ] = None,
    lowest: Annotated[
        str,
        typer.Option(help="Lowest vertebra that both films show whole, such as L5. Default: decide by the pictures."),
    ] = "",
) -> None:
    """Find and name the vertebrae on two radiographs: a landmark file to correct or confirm in the annotator."""
    from transvert.clinical.chain import detect_landmarks
    from transvert.clinical.landmarks import empty_landmarks, read_landmarks, write_landmarks
    from transvert.clinical.reconstruct import read_films

    check_writable(out.absolute().parent)
    setup = read_landmarks(landmarks, partial=True) if landmarks else empty_landmarks()
    found = detect_landmarks(*read_films(ap, lateral, setup), setup, lowest=lowest)
    write_landmarks(out, found.landmarks)
    typer.echo(found.describe())
    typer.echo(f"Wrote {out}: proposed landmarks; look at them in the annotator before you use them.")


@app.command()
def reconstruct(
    ap: Annotated[Path, typer.Option(help="AP or PA radiograph: DICOM, PNG, JPEG or TIFF.")],
    lateral: Annotated[Path, typer.Option(help="Lateral radiograph.")],
    out: Out,
    landmarks: Annotated[Path | None, typer.Option(help="Landmark file (JSON). Default: find the vertebrae.")] = None,
    weights: Weights = "",
    draws: Annotated[int, typer.Option(min=0, help="Repetitions with perturbed landmarks, for sd. 0: none.")] = 10,
    landmark_sd: Annotated[
        float, typer.Option(min=0, max=50, help="Landmarks' standard deviation, mm. 0: exact.")
    ] = 2.0,
) -> None:
    """Reconstruct a standing spine from two radiographs: label volume, surfaces and posture. For research only."""
    from transvert.clinical.reconstruct import Reconstruction, posture_table, reconstruct
    from transvert.clinical.report import write_reconstruction, write_spine

    def show(found: Reconstruction) -> list[str]:
        table = posture_table(found)
        known = table.dropna(subset="value").dropna(axis=1, how="all")
        if len(known):
            typer.echo(known.to_string(na_rep="-"))
        return list(table.index[table["value"].isna()])

    def write_first(found: Reconstruction) -> None:
        meshes.update(write_spine(found, out))
        show(found)
        typer.echo(
            f"Wrote shapes and posture to {out}. Their uncertainty, from {draws} repetitions, and the report follow.\n"
        )

    meshes: dict[int, Any] = {}
    found = reconstruct(ap, lateral, landmarks, weights, draws=draws, landmark_sd_mm=landmark_sd, on_spine=write_first)
    if not draws:
        meshes = write_spine(found, out)
    digest = sha256(out / "landmarks.json")[:8]  # A name that says nothing of the patient.
    write_reconstruction(found, out, label=f"case {digest}", meshes=meshes)
    missing = show(found)
    if draws:
        typer.echo(f"sd, and low to high (95 %), are from {found.posture['uncertainty']['cause']}.")
    if missing:
        typer.echo(f"Not measured: {', '.join(missing)}; posture_measures.csv says why.")
    for warning in found.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    typer.echo(f"Wrote {len(found.vertebrae)} vertebrae to {out}. For research only, not for diagnosis.")


def main() -> None:
    """Runs the command line; bad input ends in one sentence and exit code 2, and so does a disk that can't be written."""
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # A file's name need not be text.
    try:
        app()
    except (InputError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in UNWRITABLE:
            raise
        typer.echo(_describe(error), err=True)
        sys.exit(2)


def _describe(error: InputError | OSError) -> str:
    """One sentence."""
    if isinstance(error, InputError) or error.errno not in FULL:  # Others may come from a file that can't be read.
        return str(error)
    what = error.filename or "The output"
    return f"{what} can't be written ({error.strerror}); what was written before is incomplete. Make room and run this again."


if __name__ == "__main__":
    main()
