"""Posters and weights in pieces for gpu_check.sh.

    python tests/bench/gpu_pieces.py --images DIR --metadata CSV [--weights FILE] --out DIR [--limit-mib 50]

Builds small shards of the posters (`posters shards build`, all in one split), and puts them and the weights into
folders of at most --limit-mib: DIR/posters-1, DIR/posters-2, ..., DIR/weights. Any of the folders can be left behind.
Keep DIR outside of the checkout: posters and weights are others' property. gpu_wheels.py makes the folders of wheels.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from gpu.pieces import deal, mebibytes  # noqa: E402

from shards.build.run import BuildOptions, build_shards  # noqa: E402
from shards.errors import UserError  # noqa: E402
from shards.tables.metadata import GenreOptions  # noqa: E402

#: About 4 MB of posters as databases have them, so that the pieces come out nearly full.
SAMPLES_PER_SHARD = 200


def make(args: argparse.Namespace) -> None:
    """Build and deal. Raises UserError."""
    if args.out.exists() and any(args.out.iterdir()):
        raise UserError("path-exists", f"--out {args.out} has files: choose an empty folder")
    if args.weights is not None and not args.weights.is_file():
        raise UserError("path-missing", f"--weights {args.weights} is not there")
    with tempfile.TemporaryDirectory() as name:
        build_shards(
            BuildOptions(
                metadata=args.metadata,
                images=args.images,
                out=Path(name),
                fractions=(1.0, 0.0, 0.0),
                samples_per_shard=SAMPLES_PER_SHARD,
                near_duplicates=0,
                **{field.name: getattr(args, field.name) for field in fields(GenreOptions)},
            )
        )
        tars = sorted(Path(name).glob("*.tar"))
        for number, part in enumerate(deal(tars, args.limit_mib), 1):
            for tar in part:
                put(tar, args.out / f"posters-{number}")
    if args.weights is not None:
        put(args.weights, args.out / "weights")
    for piece in sorted(args.out.iterdir()):
        size = sum(path.stat().st_size for path in piece.iterdir())
        print(f"{piece}: {len(list(piece.iterdir()))} files, {size / 2**20:.1f} MiB")


def put(path: Path, folder: Path) -> None:
    """Copy a file into a folder that may be new."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, folder / path.name)


def main() -> int:
    """Parse and make."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="folder of posters")
    parser.add_argument("--metadata", type=Path, required=True, help="CSV of genre lists")
    parser.add_argument("--weights", type=Path, help="backbone weights, a .safetensors file")
    parser.add_argument("--out", type=Path, required=True, help="a folder that is not there, or is empty")
    parser.add_argument("--limit-mib", type=mebibytes, default=50.0, help="largest piece (default: %(default)s)")
    for field in fields(GenreOptions):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}", default=field.default, help="as of `posters shards build`"
        )
    args = parser.parse_args()
    try:
        make(args)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
