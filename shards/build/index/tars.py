"""Write the indexes and the manifest for tars that another tool wrote, such as img2dataset.

    place ─ tar_places.py ─→ tars in a folder or at a URL
          ─ kept.py, one task per tar ─→ usable samples with ids and targets, rejected samples
          ─ join.py ─→ samples with unique ids, genres from a table
          ─ genres.py ─→ genres from the targets, if there is no table
          ─→ NAME.index.parquet for each tar, sample tables, rejected.csv, _info.json, manifest.json (last)

rejected.csv has one row for each rejected sample, with the reason. Two samples with the same id are an error.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, replace
from pathlib import Path

from shards.build.index.genres import GENRES, Choice, choose_genres
from shards.build.index.join import join_csv, require_genres, require_unique_names
from shards.build.index.kept import forget, read_tars
from shards.build.index.place import PlaceOfSet, place_of_set
from shards.build.index.read import Contents, ReadTask
from shards.build.index.tar_places import SPLIT, Place, TarFile, find_tars, is_pattern, parse_place
from shards.build.index.targets import CLASS_FIELD, flag_names
from shards.build.pack import describe
from shards.build.split import SPLITS, check_fractions, parse_splits
from shards.build.verify import check_set
from shards.dataset.index import SUFFIX, index_path, read_index, write_index
from shards.dataset.labels import LabelSet
from shards.dataset.manifest import NAME as MANIFEST
from shards.dataset.manifest import Manifest
from shards.dataset.timm_info import NAME as TIMM_INFO
from shards.dataset.timm_info import remove_timm_info, write_timm_info
from shards.errors import UserError, printable
from shards.executors.local import WorkersOption
from shards.inputs.rejections import Rejection, first_reasons, write_rejected
from shards.inputs.scan import warn_of_frames
from shards.options import option
from shards.storage.files import PARTIAL, names_in, remove_file
from shards.storage.lock import folder_lock
from shards.storage.paths import StoragePath, storage_path
from shards.tables.metadata import GenreOptions, read_metadata
from shards.tables.split_names import SPLIT_NAMES
from shards.versions import library_versions

log = logging.getLogger(__name__)

REJECTED = "rejected.csv"
NO_SAMPLES = "no samples"
"""Reason in rejected.csv for the rejection of a tar. tar_places.py has the other reasons for a whole file."""
SPLIT_WORD = re.compile(rf"(?:^|[-_.])({'|'.join(SPLIT_NAMES)})(?=[-_.])", re.IGNORECASE)
OWN_PARTIAL = re.compile(rf"(.+{re.escape(SUFFIX)}|.+\.samples\.npy|{MANIFEST}|{TIMM_INFO}|{REJECTED})\.[^.]+{PARTIAL}")


@dataclass(frozen=True)
class IndexOptions(GenreOptions, WorkersOption):
    """Options of ``posters shards index``."""

    folder: Place = option(MISSING, positional=True, metavar="PLACE", several="words", parse=parse_place)
    """Folder or URL of .tar files from WebDataset, img2dataset or similar tools, or the tars themselves, also with
    braces such as 'https://HOST/SET/train-{000000..000147}.tar'."""
    out: StoragePath | None = option(None, metavar="FOLDER", parse=storage_path)
    """Folder for the indexes and the manifest, for tars at a URL or in a read-only folder (default: beside the
    tars)."""
    split: str = "train"
    """Split of the tars whose names have no word train, val or test, as in val-00.tar or set-val-00.tar, and which are
    not in such a folder."""
    fractions: tuple[float, ...] | None = option(None, "--splits", parse=parse_splits)
    """Divide the tars that --split describes into train, val and test, such as 0.8,0.1,0.1. Each tar belongs to one
    split, so the shares are not exact, and near-duplicates in different tars are not found."""
    genre_field: str | None = None
    """Name of the JSON field with the genres of a sample: text as in a cell of a table, a list of names, a class
    number, a list of 0 and 1, or a list of numbers. Several names, such as red,green, are fields of 0 and 1. ``cls``
    takes the class number in the .cls members. The default is .cls if the tars have such members, or else genres."""
    metadata: Path | None = None
    """Table with the genres, used instead of the JSONs. An id in the table is a sample's JSON id, key or file name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not SPLIT.fullmatch(self.split):
            allowed = "letters, digits, dots and dashes"
            raise UserError("option-value", f"--split may contain only {allowed}, not {self.split!r}")
        if self.fractions is not None:
            check_fractions(self.fractions)
            if self.split != "train":
                raise UserError("option-conflict", "--split and --splits exclude each other: choose one of them")
        if self.metadata is not None and self.genre_field is not None:
            what = "--metadata and --genre-field exclude each other: the genres come from the table or from the tars"
            raise UserError("option-conflict", what)
        names = flag_names(self.genre_field or "")
        if len(set(names)) < len(names) or not all(names):
            what = f"--genre-field must name different fields between its commas, not {self.genre_field!r}"
            raise UserError("option-value", what)

    def task(self, tar: Path) -> ReadTask:
        """Return the task to read a tar."""
        field, separator = self.genre_field or GENRES, self.genre_separator or "|"
        if self.metadata is not None:
            return ReadTask(tar, None, separator)
        return ReadTask(tar, field, separator, self.genre_field in (None, CLASS_FIELD))


def index_folder(options: IndexOptions) -> Manifest:
    """Write an index file for each tar of a folder, URL or pattern. Then write rejected.csv and the manifest.

    No tar is changed. A set without genres can be used for prediction only. If some samples have genres, samples
    without genres are rejected. What was read is kept until the set is complete, for a later run. Raises UserError if
    no sample is usable, a tar is damaged or missing, two samples share an id, or the genres have no clear meaning.
    """
    place = place_of_set(options.folder, options.out)
    tars = find_tars(options.folder)
    folder, rejected = place.folder, tars.rejected
    if place.has_secrets:
        log.warning("%s: its user, password and query are not stored; set them in fsspec's configuration", place.tars)
    metadata = read_metadata(options.metadata, options) if options.metadata else None
    with folder_lock(folder):
        if (before := place.earlier_set()) is not None and not before.source.get("indexed"):
            other = options.genre_field not in (None, GENRES)
            unused = "--metadata" if options.metadata else "--genre-field" if other else ""
            if unused or is_pattern(options.folder):
                why = f"{folder} already has the genres of `posters shards build`"
                remedy = f"leave {unused} out and " if unused else ""
                remedy += "name the folder, or index its tars into another folder with --out"
                raise UserError("option-conflict", f"{why}; {remedy}")
            return _add_index_digests(folder, before, options.workers)
        if before is not None and is_pattern(options.folder):
            place.require_all(before, [tar.name for tar in tars.files])
        for here in {folder, *((folder / tar.name).parent for tar in tars.files)}:  # left by a killed run
            for name in filter(OWN_PARTIAL.fullmatch, names_in(here)):
                remove_file(here / name)
        found = read_tars([options.task(tar.place) for tar in tars.files], tars.files, folder, options.workers)
        require_unique_names(found, [tar.name for tar in tars.files], joined=metadata is not None)
        if metadata is not None:
            join_csv(found, metadata, options.metadata)
            require_genres(found)
            choice = Choice()
        else:
            choice = choose_genres(str(tars.root), options.genre_field, options.spellings == "refuse", found)
        warn_of_frames([key for contents in found for key in contents.films])
        for contents in found:
            rejected += contents.rejected
            if not contents.genres and not contents.rejected:
                rejected.append(Rejection(contents.tar.name, NO_SAMPLES, _members(contents.others) or "it is empty"))
        manifest = _write_set(options, place, dict(zip(tars.files, found, strict=True)), rejected, choice)
        forget(folder)
        return manifest


def _add_index_digests(folder: Path, manifest: Manifest, workers: int) -> Manifest:
    """Compare the tar, the index and the sample table of every shard. Then add each index's SHA-256 to the manifest."""
    problems, indexes = check_set(folder, manifest, workers, decode=False)
    if problems:
        more = f" (and {len(problems) - 1} more problems)" if len(problems) > 1 else ""
        what = f"{folder} is damaged, and its manifest is not changed: {problems[0]}{more}"
        remedy = "run `posters shards verify` to see all problems, delete tars with problems and run the build again"
        raise UserError("set-damaged", f"{what}; {remedy}")
    complete = replace(manifest, shards=manifest.with_index_digests(indexes))
    write_timm_info(folder, complete)
    if complete != manifest:
        complete.write(folder)
    log.info("%d shards have no problems; the manifest now has the SHA-256 of their indexes", len(complete.shards))
    return complete


def _write_set(
    options: IndexOptions,
    place: PlaceOfSet,
    tars: Mapping[TarFile, Contents],
    rejected: list[Rejection],
    choice: Choice,
) -> Manifest:
    folder, others = place.folder, sum((contents.others for contents in tars.values()), Counter[str]())
    if not any(contents.genres for contents in tars.values()):
        write_rejected(folder / REJECTED, rejected)
        remedy = f"all reasons are in {folder / REJECTED}"
        raise UserError("images-none", f"{place.root} has no usable sample: {first_reasons(rejected)}; {remedy}")
    taken = {tar: contents for tar, contents in tars.items() if contents.genres}
    weighted = _are_weighted(place.root, list(taken.values()))
    labels = choice.labels or LabelSet.from_samples(genres for contents in tars.values() for genres in contents.genres)
    for contents in tars.values():
        contents.label(labels)
    for tar, contents in tars.items():
        if _is_indexed(folder / tar.name, contents):
            continue
        remove_file(folder / MANIFEST)  # a set without a manifest counts as unfinished
        remove_timm_info(folder)
        if contents.genres:
            write_index(folder / tar.name, contents.table, contents.facts())
        else:
            remove_file(index_path(folder / tar.name))  # an earlier run may have written an index
    width = len(labels)
    splits = _splits(options, {tar: contents.table.num_rows for tar, contents in taken.items()})
    shards = [describe(tar.name, splits[tar], c.table, c.facts(), width) for tar, c in taken.items()]
    shards.sort(key=lambda shard: ((*SPLITS, shard.split).index(shard.split), shard.split, shard.name))
    manifest = Manifest(
        list(labels.genres),
        shards,
        source={
            "indexed": True,
            "samples": sum(shard.samples for shard in shards),
            "rejected": dict(sorted(Counter(r.reason for r in rejected).items())),
            "other_members": _members(others),
            **choice.source,
            "genre_separator": options.genre_separator or "|",
        },
        versions=library_versions(),
        tars=place.tars,
    )
    write_rejected(folder / REJECTED, rejected)
    manifest.write_tables(folder, weighted)
    write_timm_info(folder, manifest)
    manifest.write(folder)
    return manifest


def _are_weighted(folder: StoragePath, taken: Sequence[Contents]) -> bool:
    """Return whether the samples have weights. Raises UserError if only some of them have one."""
    counts = [len(c.table) - c.table["weight"].null_count if "weight" in c.table.column_names else 0 for c in taken]
    if any(counts) and (without := [c.tar for c, n in zip(taken, counts, strict=True) if n < len(c.table)]):
        what = f"some samples of {folder} have a sample weight, but samples of {without[0].name} have none"
        raise UserError("set-other", f"{what}; index them in separate folders, or build the set again")
    if any(counts):
        log.info("the samples have weights, which `posters shards build` wrote into their JSONs")
    return any(counts)


def _is_indexed(tar: Path, contents: Contents) -> bool:
    """Return whether the index for the tar has these contents. ``tar``: path of the tar if it was beside its index."""
    if not contents.genres:
        return not index_path(tar).exists()
    with contextlib.suppress(UserError):
        table, facts = read_index(tar)
        return facts == contents.facts() and table.equals(contents.table)
    return False


def _splits(options: IndexOptions, samples: Mapping[TarFile, int]) -> dict[TarFile, str]:
    """Return the split of each tar, from _info.json, its folder or its name.

    Other tars get --split, or are divided by --splits. samples: number of samples of each tar. Raises UserError if
    --splits needs more tars than there are.
    """
    found: dict[TarFile, str] = {}
    for tar in samples:
        below, _, file = tar.name.rpartition("/")
        named = _split_in_name(file)
        if tar.split is not None or below.lower() in SPLIT_NAMES:
            found[tar] = tar.split or SPLIT_NAMES[below.lower()]
        elif named or options.fractions is None:
            found[tar] = named or options.split
    if options.fractions is None:
        return found
    left = [tar for tar in samples if tar not in found]
    left.sort(key=lambda tar: hashlib.blake2b(tar.place.name.encode(), digest_size=16).digest())
    shares = {split: share for split, share in zip(SPLITS, options.fractions, strict=True) if share > 0}
    if len(left) < len(shares):
        remedy = "divide the samples into more tars, or leave --splits out"
        raise UserError("option-value", f"--splits cannot divide {len(left)} tars into {len(shares)} splits; {remedy}")
    total, taken = sum(samples[tar] for tar in left), dict.fromkeys(shares, 0)
    for number, tar in enumerate(left):
        # The last tars go to the splits without a tar.
        empty = [split for split in shares if not taken[split]]
        chosen = empty if len(empty) >= len(left) - number else list(shares)
        split = max(chosen, key=lambda split: shares[split] * total - taken[split])
        found[tar], taken[split] = split, taken[split] + samples[tar]
    shown = ", ".join(f"{count / total:.1%} {split}" for split, count in taken.items())
    log.info("%d tars are divided into splits: %s of the samples", len(left), shown)
    return found


def _split_in_name(name: str) -> str:
    """Return the split at the start of a name, or the only split in the name. Empty if the name has no split."""
    words = [SPLIT_NAMES[word.lower()] for word in SPLIT_WORD.findall(name)]
    at_start = SPLIT_WORD.match(name) is not None
    return words[0] if words and (at_start or len(set(words)) == 1) else ""


def _members(others: Counter[str]) -> str:
    most = others.most_common(10)
    rest = others.total() - sum(count for _, count in most)
    shown = ", ".join(f"{count} {printable(kind[:40])}" for kind, count in most)
    return shown + (f" and {rest} more" if rest else "")
