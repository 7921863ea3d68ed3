"""``posters audit`` itself: from its options to tables and a report."""

from __future__ import annotations

import argparse

import numpy as np

from shards.errors import UserError
from shards.extras import require_extra
from toolkit.audit.run import audit_posters, fill_maker
from toolkit.audit.selection import AuditOptions, choose_posters, read_posters, read_targets
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import load_model_folder


def run_audit(args: argparse.Namespace) -> int:
    """Audit, print the tables, write the report. Returns the exit status: 1 if no poster could be compared."""
    from toolkit.audit.results import build_report, write_report
    from toolkit.audit.tables import render_report

    require_extra("clean", "`posters audit`", "cv2")
    options = AuditOptions(
        args.images, args.cleaned, args.seed, args.controls, args.limit, args.batch_size, args.workers
    )
    fills = fill_maker(args.fill_model)
    folder = load_model_folder(args.model)
    targets: dict[str, np.ndarray] | None = None
    if args.metadata is not None:
        columns = args.id_column, args.genre_column, args.genre_separator, args.encoding, args.spellings
        targets = read_targets(args.metadata, folder.labels, *columns)
    chosen = choose_posters(read_posters(args.cleaned), options, targets)
    accelerator = make_accelerator(args.precision)
    if accelerator.num_processes > 1:
        raise UserError("`posters audit` runs in one process; start it without a launcher")
    audited = audit_posters(folder, chosen, options, fills, accelerator)
    report, pictures = build_report(folder, chosen, audited, options, fills, targets)
    report["command"] |= {
        "metadata": None if args.metadata is None else str(args.metadata),
        "fill_model": None if args.fill_model is None else str(args.fill_model),
        "precision": accelerator.mixed_precision,
        "device": str(accelerator.device),
    }
    if args.fill_model is None and any(poster.fill == "model" for poster in audited.posters):
        report["notes"].append(
            "Some posters were cleaned by a network, their controls were painted by `surround`; give the network "
            "with --fill-model for an equal comparison."
        )
    render_report(report)
    write_report(args.out, report, pictures)
    print(f"report     {args.out / 'audit.html'}")
    return 0 if audited.compared.any() else 1
