"""The command line: `transvert --help`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from transvert.io import InputError

app = typer.Typer(
    help="From two orthogonal radiographs to a standing spine in 3D: a reproducible companion to TransVert.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
Weights = Annotated[
    str, typer.Option(help="Trained weights (.safetensors); by default the ones shipped with the package.")
]
Out = Annotated[Path, typer.Option(help="Folder to write into.")]


@app.command()
def reproduce(
    params: Annotated[str, typer.Argument(help="A parameter set: a YAML file, or demo, smoke or paper.")] = "demo",
    start: Annotated[
        str,
        typer.Option("--from", help="Start with this notebook: 01, 02, 03 or 04. A sweep else goes on where it was."),
    ] = "",
    stop: Annotated[str, typer.Option("--to", help="End with this notebook.")] = "04",
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="seed=0,1,2 runs the notebooks for each value; with several, for each combination."),
    ] = None,
    scheduler: Annotated[
        str, typer.Option(help="Of a sweep: address of a Dask scheduler; by default this computer works.")
    ] = "",
    workers: Annotated[
        int, typer.Option(help="Of a sweep: runs at a time on this computer; 0 for as many as it has room for.")
    ] = 0,
    memory: Annotated[str, typer.Option(help="Of a sweep: what each of them may take.")] = "4 GB",
) -> None:
    """Run the four notebooks in order, or a grid of parameters, and print the table of results."""
    from transvert import runs, workflow
    from transvert.sweep import read_grid, run_sweep

    command = f"transvert reproduce {shlex.quote(params)}" + (f" --to {stop}" if stop != "04" else "")
    parameters, grid = workflow.read_parameters(params), read_grid(params, sweep or ())
    if grid:
        command += "".join(f" --sweep {shlex.quote(word)}" for word in sweep or ())
        how = {"scheduler": scheduler, "workers": workers, "memory": memory, "command": command}
        table = run_sweep(parameters, grid, start=start, stop=stop, **how)  # type: ignore[arg-type]
        folder = runs.runs_folder() / parameters["run"]
        typer.echo(f"\n{(folder / 'sweep.md').read_text(encoding='utf-8')}\nWritten: {folder / 'sweep.csv'}, sweep.md")
        if table["failed"].any():
            typer.echo(f"Once that is mended: {command}")
            raise typer.Exit(1)
        return
    summary = workflow.reproduce(parameters, start=start or "01", stop=stop, command=f"{command} --from {{}}")
    if summary.failed:
        raise typer.Exit(1)
    typer.echo("\n" + workflow.results(summary) + "\n\nWritten:")
    for path in summary.files:
        typer.echo(f"  {path}")
    for name, seconds in summary.seconds.items():
        typer.echo(f"{name}: {seconds:.0f} s, {summary.peak_memory_gib[name]:.2f} GiB")


@app.command()
def fetch(
    name: Annotated[
        str, typer.Argument(help="A data manifest of data_manifests/, such as embedded or verse19, or a YAML file.")
    ] = "embedded",
) -> None:
    """Show a data set's licence and size, then download and verify it; run it again to continue after a stop."""
    from transvert.data import cache, manifest

    found = manifest.load_manifest(name)
    terms = {"Licence": found.licence, "Access": found.access, "Cite": found.citation, "Note": found.note}
    typer.echo(found.title)
    typer.echo("\n".join(f"{term}: {' '.join(text.split())}" for term, text in terms.items() if text))
    typer.echo(f"Size: {manifest.told_size(found)}")
    subjects = manifest.fetch_subjects(found)
    for subject in subjects[:20]:
        typer.echo(f"  {subject.name}: {', '.join(sorted(path.name for path in subject.files))}")
    if len(subjects) > 20:
        typer.echo(f"  and {len(subjects) - 20} more, {len(subjects)} subjects in all")
    typer.echo(f"Kept in {found.folder or cache.cache_folder()}")


@app.command()
def synthesize(
    source: Annotated[str, typer.Argument(help="A data manifest, or a folder in VerSe's layout.")],
    out: Annotated[str, typer.Option(help="The store: a folder, or an address such as s3://bucket/store.")],
    projection: Annotated[str, typer.Option(help="parallel or cone.")] = "parallel",
    surroundings: Annotated[
        str,
        typer.Option(help="body casts the whole CT; cube each vertebra's 96 mm alone, as the public benchmark does."),
    ] = "body",
    phantoms: Annotated[
        bool, typer.Option("--phantoms", help="Paint every subject as a phantom from its mask, even those with a CT.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the phantoms.")] = 0,
    without: Annotated[list[str] | None, typer.Option(help="A subject to leave out; may be given again.")] = None,
    scheduler: Annotated[str, typer.Option(help="Address of a Dask scheduler; by default this computer works.")] = "",
    workers: Annotated[int, typer.Option(help="Processes on this computer; 0 for as many as it has room for.")] = 0,
    memory: Annotated[str, typer.Option(help="What each of them may take.")] = "4 GB",
) -> None:
    """Cast the radiographs of many subjects and cut their samples into a store; run it again to complete one."""
    from transvert.data import manifest, synthesis

    subjects: Iterable[manifest.Subject]
    if Path(source).is_dir():
        from transvert.data.subjects import verse_subjects

        subjects = verse_subjects([source])
        total = len(subjects)
    else:
        found, roles = manifest.load_manifest(source), ("ct", "mask", "surface")
        subjects = manifest.stream_subjects(found, roles=roles, strict=False)
        named = {file.subject for file in found.files if file.role in roles}
        total = len(named or manifest.subject_names(found))
    usable = (subject for subject in subjects if subject.name not in (without or ()))
    for note in synthesis.synthesize(
        usable,
        out,
        projection=projection,
        surroundings=surroundings,
        phantoms=phantoms,
        seed=seed,
        scheduler=scheduler,
        workers=workers,
        memory=memory,
        total=total,
    ):
        typer.echo(note)
    typer.echo(f"Wrote {out}")


@app.command()
def train(
    store: Annotated[str, typer.Argument(help="A sample store: a folder, or an address such as s3://bucket/store.")],
    out: Out,
    split: Annotated[
        str,
        typer.Option(
            help="Who is held out: every fifth of the 'subjects'; 'loso' (each person in turn, a training each); "
            "'loso:NAME'; 'folds:K' (K groups of people in turn), 'folds:K:N' (the Nth); those of the 'official' test "
            "sets; what a CSV of data_manifests/splits says; nobody ('all')."
        ),
    ] = "subjects",
    network: Annotated[
        str,
        typer.Option(
            help="transvert_hull (this companion's own), transvert (the paper's form), or, to compare with, "
            "twod_permute_concat, oned_concat, attention_unet."
        ),
    ] = "transvert_hull",
    draws: Annotated[
        str,
        typer.Option(help="What is drawn: 'films' as real ones may look, or clean 'drr' of a cube alone."),
    ] = "films",
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = 4000,
    epoch_steps: Annotated[int, typer.Option(help="Steps between two checkpoints and two points of the curve.")] = 200,
    batch: Annotated[int, typer.Option(help="Samples a draw.")] = 6,
    accumulate: Annotated[
        int, typer.Option(min=1, help="Draws a step and process; 2 on one process train as 1 on two do.")
    ] = 1,
    optimiser: Annotated[str, typer.Option(help="muon or adamw.")] = "muon",
    learning_rate: Annotated[float, typer.Option(help="The optimiser's peak; 0.002 is good for adamw.")] = 4e-3,
    critic_weight: Annotated[float, typer.Option(help="Of the least-squares adversarial term; 0 for none.")] = 0.0,
    one_view: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the samples that lose a view, so that one alone works too.")
    ] = 0.0,
    precision: Annotated[str, typer.Option(help="auto, 32 or bf16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the weights and of every draw.")] = 0,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start over, replacing a checkpoint found in the folder.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Keep the weights as float16, as the shipped ones are.")] = False,
) -> None:
    """Train a network on a store; run it again to continue after a stop."""
    from transvert.model.augment import AUGMENTATIONS
    from transvert.model.train import Recipe, train_folds

    if draws not in AUGMENTATIONS:
        raise InputError(f"'{draws}' are no draws; use {' or '.join(AUGMENTATIONS)}.")
    recipe = Recipe(
        network,
        steps=steps,
        epoch_steps=epoch_steps,
        batch=batch,
        accumulate=accumulate,
        optimiser=optimiser,
        learning_rate=learning_rate,
        critic_weight=critic_weight,
        one_view=one_view,
        precision=precision,
        device=device,
        strength=AUGMENTATIONS[draws],
        seed=seed,
    )
    table = train_folds(store, split, recipe, out, resume=not fresh, half=half, say=typer.echo)
    if len(table):
        subjects = table["subject"].nunique()
        typer.echo(f"Mean Dice {table['dice'].mean():.3f} over {len(table)} vertebrae of {subjects} held-out subjects.")
    if not int(os.environ.get("RANK", "0")):  # One of several processes says it.
        typer.echo(f"Wrote {out}")


@app.command()
def evaluate(
    sources: Annotated[
        list[str],
        typer.Argument(
            help="Folders in VerSe's layout: *_seg-vert_msk.nii.gz, and *_ct.nii.gz where there is one; or the store of "
            "`transvert synthesize`."
        ),
    ],
    out: Out,
    weights: Weights = "",
) -> None:
    """Measure Dice, HD95, ASSD and NSD of every whole vertebra, from its CT or from a phantom painted from its mask."""
    from transvert import runs
    from transvert.data.store import read_index, shard_names
    from transvert.data.subjects import verse_subjects
    from transvert.model import networks
    from transvert.model.evaluate import evaluate_subjects, score_rows

    network, card = networks.load_network(weights)
    if len(sources) == 1 and shard_names(sources[0]):
        table = score_rows(sources[0], read_index(sources[0]), network)
        runs.write_table(out / "metrics.csv", table)
    else:
        table = evaluate_subjects(verse_subjects(sources), network, out)
    typer.echo(table.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    typer.echo(
        f"Mean Dice {table.dice.mean():.3f} over {len(table)} vertebrae, network {card['network']}. Wrote {out / 'metrics.csv'}"
    )


@app.command()
def calibrate(
    store: Annotated[str, typer.Argument(help="A sample store.")],
    folds: Annotated[Path, typer.Option(help="What `train STORE --split folds:K` (or loso) wrote.")],
    out: Out,
    weights: Annotated[
        Path | None, typer.Option(help="Weights of the same recipe, learned from everybody, whose card is to hold it.")
    ] = None,
) -> None:
    """Measure how right trained networks are about their own errors, on people they never saw; write the calibration."""
    from transvert.model import calibration, networks
    from transvert.model.evaluate import unseen_people
    from transvert.plots import figures

    found = calibration.examine_networks((network, subject) for _, network, _, subject in unseen_people(store, folds))
    calibration.write_reliability(found, out)
    figures.save_figure(figures.reliability_diagram(found), out / "reliability.png")
    if weights is not None:
        networks.add_to_card(weights, calibration=found.calibration.card())
    typer.echo(f"{figures.describe_reliability(found)}\nWrote {out}")


@app.command()
def reconstruct(
    ap: Annotated[Path, typer.Option(help="The AP (or PA) film: DICOM, PNG, JPEG or TIFF.")],
    lateral: Annotated[Path, typer.Option(help="The lateral film.")],
    landmarks: Annotated[Path, typer.Option(help="The landmark file (JSON).")],
    out: Out,
    weights: Weights = "",
    draws: Annotated[
        int,
        typer.Option(min=0, help="How often the spine is found again from other clicks, for sd and range; 0: never."),
    ] = 10,
    click_mm: Annotated[
        float,
        typer.Option(min=0, help="Standard deviation of the landmarks, mm in the patient; 0 where they are exact."),
    ] = 2.0,
) -> None:
    """Take two films and their landmarks to a standing spine: label volume, surfaces and posture. For research only."""
    from transvert.clinical.landmarks import read_landmarks
    from transvert.clinical.reconstruct import open_radiographs, posture_table, reconstruct, write_reconstruction
    from transvert.clinical.report import write_report
    from transvert.model import networks

    marks = read_landmarks(landmarks)
    films = open_radiographs(ap, lateral, marks)
    network, card = networks.load_network(weights)
    found = reconstruct(*films, marks, network, card=card, draws=draws, click_mm=click_mm)
    write_report(out / "report.html", found, films, write_reconstruction(found, out), card)
    table = posture_table(found)
    known = table["value"].notna()
    if known.any():
        typer.echo(table[known].drop(columns="reason").to_string(na_rep="-"))
    if draws:
        typer.echo(f"sd, and low to high (95 %), are from {found.posture['uncertainty']['cause']}.")
    if not known.all():
        typer.echo(f"Not measured: {', '.join(table.index[~known])}; posture_measures.csv says why.")
    for warning in found.warnings:
        typer.echo(f"Warning: {warning}", err=True)
    typer.echo(f"Wrote {len(found.vertebrae)} vertebrae to {out}. For research only, not for diagnosis.")


def main() -> None:
    """Runs the command line; bad input ends in one sentence and exit code 2."""
    try:
        app()
    except InputError as error:
        typer.echo(str(error), err=True)
        sys.exit(2)
