"""Write the indexes and the manifest for tars that another tool wrote, such as img2dataset.

    tars ─ index_read.read_contents, one task per tar ─→ usable samples with ids and genres, rejected samples
         ─ index_join.py ─→ samples with unique keys and ids, genres from a table
         ─→ NAME.index.parquet beside each tar, sample tables, rejected.csv, _info.json for timm, manifest.json (last)

rejected.csv has one row for each rejected sample, with the reason. Two samples with the same key or id are an error.
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

from shards.build.index_join import join_csv, require_genres, require_unique_names
from shards.build.index_read import Contents, ReadTask, read_contents
from shards.build.pack import describe
from shards.build.split import SPLITS, check_fractions, parse_splits
from shards.build.verify import check_set
from shards.dataset.index import SUFFIX, index_path, list_tars, read_index, write_index
from shards.dataset.labels import LabelSet, merge_spellings
from shards.dataset.manifest import NAME as MANIFEST
from shards.dataset.manifest import Manifest
from shards.dataset.timm_info import NAME as TIMM_INFO
from shards.dataset.timm_info import remove_timm_info, write_timm_info
from shards.errors import UserError, printable, some
from shards.executors.chunks import results_in_order
from shards.executors.local import LocalExecutor, WorkersOption
from shards.inputs.rejections import Rejection, first_reasons, write_rejected
from shards.inputs.scan import warn_of_frames
from shards.options import option
from shards.storage.files import PARTIAL, names_in, remove_file
from shards.storage.lock import folder_lock
from shards.tables.genre_checks import doubt_about_classes, warn_of_words
from shards.tables.metadata import GenreOptions, read_metadata
from shards.tables.split_names import SPLIT_NAMES
from shards.versions import library_versions

log = logging.getLogger(__name__)

REJECTED = "rejected.csv"
NO_TAR, NO_SAMPLES, NO_SPLIT = "not a .tar", "no samples", "in another folder"
"""Reasons in rejected.csv for the rejection of a whole file. All other reasons are for a sample."""
MAX_TAR_NAME = 240
"""Largest length of a tar's file name, in bytes. Its index file has a longer name, which must also be valid."""
SPLIT_NAME = re.compile(rf"({'|'.join(SPLIT_NAMES)})[-_.]", re.IGNORECASE)
LIKE_TARS = re.compile(r"\.(tar(\.\w+)?|tgz|tbz2?|txz|tzst)$", re.IGNORECASE)
OWN_PARTIAL = re.compile(rf"(.+{re.escape(SUFFIX)}|.+\.samples\.npy|{MANIFEST}|{TIMM_INFO}|{REJECTED})\.[^.]+{PARTIAL}")


@dataclass(frozen=True)
class IndexOptions(GenreOptions, WorkersOption):
    """Options of ``posters shards index``."""

    folder: Path = option(MISSING, positional=True)
    """Folder of .tar files from WebDataset, img2dataset or similar tools."""
    split: str = "train"
    """Split of the tars whose names do not start with train-, val- or test-, and which are not in such a folder."""
    fractions: tuple[float, ...] | None = option(None, "--splits", parse=parse_splits)
    """Divide the tars that --split describes into train, val and test, such as 0.8,0.1,0.1. Each tar belongs to one
    split, so the shares are not exact, and near-duplicates in different tars are not found."""
    genre_field: str = "genres"
    """Name of the JSON field with the genres of a sample. Its value is a list, or text as in a cell of a table."""
    metadata: Path | None = None
    """Table with the genres, used instead of the JSONs. An id in the table is a sample's JSON id, key or file name."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not re.fullmatch(r"\w[\w.-]*", self.split, re.ASCII):
            allowed = "letters, digits, dots and dashes"
            raise UserError("option-value", f"--split may contain only {allowed}, not {self.split!r}")
        if self.fractions is not None:
            check_fractions(self.fractions)
            if self.split != "train":
                raise UserError("option-conflict", "--split and --splits exclude each other: choose one of them")

    @property
    def json_genres(self) -> str | None:
        """Name of the JSON field that has the genres of a sample. None if the genres come from ``metadata``."""
        return self.genre_field if self.metadata is None else None


def index_folder(options: IndexOptions) -> Manifest:
    """Write an index file beside each tar of a folder. Then write rejected.csv and the manifest. No tar is changed.

    A set without genres can be used for prediction only. If some samples have genres, samples without genres
    are rejected. Raises UserError if no sample is usable, a tar is damaged, or two samples share a key or id.
    """
    if not options.folder.is_dir():
        raise UserError("path-missing", f"no such folder: {options.folder}")
    tars, rejected = _tars(options.folder)
    metadata = read_metadata(options.metadata, options) if options.metadata else None
    with folder_lock(options.folder):
        if (options.folder / MANIFEST).exists():
            before = Manifest.read(options.folder)
            if not before.source.get("indexed"):
                if options.metadata is not None:
                    why = f"{options.folder} already has the genres of `posters shards build`"
                    raise UserError(
                        "option-conflict", f"{why}; leave --metadata out, or build a new set with that table"
                    )
                return _add_index_digests(options.folder, before, options.workers)
        for place in {options.folder, *(tar.parent for tar in tars)}:  # left by a killed run of this command
            for name in filter(OWN_PARTIAL.fullmatch, names_in(place)):
                remove_file(place / name)
        tasks = [ReadTask(tar, options.json_genres, options.genre_separator or "|") for tar in tars]
        found = results_in_order(LocalExecutor(options.workers), read_contents, tasks, "reading tars", "tar")
        require_unique_names(found)
        if metadata is not None:
            join_csv(found, metadata, options.metadata)
        else:
            _merge_spellings(options, found)
        require_genres(found)
        fields = next((contents.fields for contents in found if contents.fields), [])
        if options.json_genres and fields and not any(genres for contents in found for genres in contents.genres):
            log.warning(
                "no JSON has genres in %r; the fields are %s",
                options.json_genres,
                some([repr(name[:60]) for name in fields]),
            )
        warn_of_frames([key for contents in found for key in contents.films])
        for contents in found:
            rejected += contents.rejected
            if not contents.genres and not contents.rejected:
                rejected.append(Rejection(contents.tar.name, NO_SAMPLES, _members(contents.others) or "it is empty"))
        return _write_set(options, found, rejected)


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


def _tars(folder: Path) -> tuple[list[Path], list[Rejection]]:
    """Return the .tar files in a folder and in its subfolders of splits, and rejections of files such as .tar.gz.

    Raises UserError if there is no .tar file.
    """
    below = sorted(path for path in folder.iterdir() if path.name.lower() in SPLIT_NAMES and path.is_dir())
    tars, rejected = list[Path](), list[Rejection]()
    for place in (folder, *below):
        tars += (here := list_tars(place))
        like = {name for name in names_in(place) if LIKE_TARS.search(name) and PARTIAL not in name}
        others, remedy = sorted(like - {tar.name for tar in here}), "decompress it, or rename it to end with .tar"
        rejected += [Rejection(printable(name), NO_TAR, remedy) for name in others]
    for path in sorted(folder.rglob("*.tar")):
        if path.parent not in (folder, *below):
            name = printable(path.relative_to(folder).as_posix())
            rejected.append(Rejection(name, NO_SPLIT, "move it to the folder, or to its train, val or test"))
    if not tars:
        why = f": {first_reasons(rejected)}" if rejected else ""
        raise UserError("set-missing", f"no .tar file in {folder}{why}")
    for tar in tars:
        name = tar.name
        if printable(name) != name or set(name) & set("\n\t\\:") or len(name.encode()) > MAX_TAR_NAME:
            raise UserError("path-name", f"the name of {str(tar)!r} is too long or has unsafe characters: rename it")
    return tars, rejected


def _merge_spellings(options: IndexOptions, found: Sequence[Contents]) -> None:
    """Give each genre of the JSONs one spelling. Warn about texts that are not genres, and about a wrong field."""
    where = f"{options.folder}: the JSONs' field {options.genre_field!r}"
    warn_of_words(where, sum((contents.words for contents in found), Counter[str]()), "rename it")
    merged, lines = merge_spellings([genres for contents in found for genres in contents.genres])
    if lines and options.spellings == "refuse":
        why = f"{'; '.join(lines[:3])}; correct the JSONs, or pass --spellings merge"
        raise UserError("labels-invalid", f"the JSONs of {options.folder} have several spellings of one genre: {why}")
    for line in lines:
        log.warning("%s", line)
    samples = [genres for genres in merged if genres]
    labels = Counter(label for genres in samples for label in genres)
    if doubt := doubt_about_classes(where, labels, samples):
        log.warning("%s; if this is the wrong field, choose another with --genre-field, or use --metadata", doubt)
    left = iter(merged)
    for contents in found:
        contents.genres = [next(left) for _ in contents.genres]


def _write_set(options: IndexOptions, found: Sequence[Contents], rejected: list[Rejection]) -> Manifest:
    folder, others = options.folder, sum((contents.others for contents in found), Counter[str]())
    if not any(contents.genres for contents in found):
        write_rejected(folder / REJECTED, rejected)
        remedy = f"all reasons are in {folder / REJECTED}"
        raise UserError("images-none", f"{folder} has no usable sample: {first_reasons(rejected)}; {remedy}")
    taken = [contents for contents in found if contents.genres]
    weighted = _are_weighted(folder, taken)
    labels = LabelSet.from_samples(genres for contents in found for genres in contents.genres)
    for contents in found:
        contents.label(labels)
    for contents in [contents for contents in found if not _is_indexed(contents)]:
        remove_file(folder / MANIFEST)  # a set without a manifest counts as unfinished
        remove_timm_info(folder)
        if contents.genres:
            write_index(contents.tar, contents.table, contents.facts())
        else:
            remove_file(index_path(contents.tar))  # an earlier run may have written an index
    width = len(labels)
    splits = _splits(options, {c.tar: c.table.num_rows for c in taken})
    names = {c.tar: c.tar.relative_to(folder).as_posix() for c in taken}
    shards = [describe(names[c.tar], splits[c.tar], c.table, c.facts(), width) for c in taken]
    shards.sort(key=lambda shard: ((*SPLITS, shard.split).index(shard.split), shard.split, shard.name))
    manifest = Manifest(
        list(labels.genres),
        shards,
        source={
            "indexed": True,
            "samples": sum(shard.samples for shard in shards),
            "rejected": dict(sorted(Counter(r.reason for r in rejected).items())),
            "other_members": _members(others),
            "genre_field": options.json_genres,
            "genre_separator": options.genre_separator or "|",
        },
        versions=library_versions(),
    )
    write_rejected(folder / REJECTED, rejected)
    manifest.write_tables(folder, weighted)
    write_timm_info(folder, manifest)
    manifest.write(folder)
    return manifest


def _are_weighted(folder: Path, taken: Sequence[Contents]) -> bool:
    """Return whether the samples have weights. Raises UserError if only some of them have one."""
    counts = [len(c.table) - c.table["weight"].null_count if "weight" in c.table.column_names else 0 for c in taken]
    if any(counts) and (without := [c.tar for c, n in zip(taken, counts, strict=True) if n < len(c.table)]):
        what = f"some samples of {folder} have a sample weight, but samples of {without[0].name} have none"
        raise UserError("set-other", f"{what}; index them in separate folders, or build the set again")
    if any(counts):
        log.info("the samples have weights, which `posters shards build` wrote into their JSONs")
    return any(counts)


def _is_indexed(contents: Contents) -> bool:
    if not contents.genres:
        return not index_path(contents.tar).exists()
    with contextlib.suppress(UserError):
        table, facts = read_index(contents.tar)
        return facts == contents.facts() and table.equals(contents.table)
    return False


def _splits(options: IndexOptions, samples: Mapping[Path, int]) -> dict[Path, str]:
    """Return the split of each tar, from its folder or name. Other tars get --split, or are divided by --splits.

    samples: number of samples of each tar. Raises UserError if --splits needs more tars than there are.
    """
    found: dict[Path, str] = {}
    for tar in samples:
        named = SPLIT_NAME.match(tar.name)
        if tar.parent != options.folder:
            found[tar] = SPLIT_NAMES[tar.parent.name.lower()]
        elif named or options.fractions is None:
            found[tar] = SPLIT_NAMES[named.group(1).lower()] if named else options.split
    if options.fractions is None:
        return found
    left = [tar for tar in samples if tar not in found]
    left.sort(key=lambda tar: hashlib.blake2b(tar.name.encode(), digest_size=16).digest())
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


def _members(others: Counter[str]) -> str:
    most = others.most_common(10)
    rest = others.total() - sum(count for _, count in most)
    shown = ", ".join(f"{count} {printable(kind[:40])}" for kind, count in most)
    return shown + (f" and {rest} more" if rest else "")
