"""Run ``posters audit``: audit the posters, print tables and write a report."""

from __future__ import annotations

import numpy as np

from shards.errors import UserError
from shards.extras import require_extra
from toolkit.audit.options import AuditOptions
from toolkit.audit.run import audit_posters, fill_maker
from toolkit.audit.selection import choose_posters, read_posters, read_targets
from toolkit.distributed.collectives import make_accelerator
from toolkit.model_folder.folder import load_model_folder


def run_audit(options: AuditOptions) -> int:
    """Audit, print the tables and write the report. Return the exit status: 1 if no poster could be compared."""
    from toolkit.audit.results import build_report, write_report
    from toolkit.audit.tables import render_report

    require_extra("clean", "`posters audit`", "cv2")
    fills = fill_maker(options.fill_model)
    folder = load_model_folder(options.model)
    targets: dict[str, np.ndarray] | None = None
    if options.metadata is not None:
        targets = read_targets(options.metadata, folder.labels, options)
    chosen = choose_posters(read_posters(options.cleaned), options, targets)
    accelerator = make_accelerator(options.precision)
    if accelerator.num_processes > 1:
        raise UserError("environment", "`posters audit` runs in one process; start it without a launcher")
    audited = audit_posters(folder, chosen, options, fills, accelerator)
    report, pictures = build_report(folder, chosen, audited, options, fills, targets)
    report["command"] |= {
        "metadata": None if options.metadata is None else str(options.metadata),
        "fill_model": None if options.fill_model is None else str(options.fill_model),
        "precision": accelerator.mixed_precision,
        "device": str(accelerator.device),
    }
    if options.fill_model is None and any(poster.fill == "model" for poster in audited.posters):
        report["notes"].append(
            "Some posters were cleaned by a network, but their controls were painted by `surround`. For a fair "
            "comparison, give the ONNX file of this network with --fill-model."
        )
    render_report(report)
    write_report(options.out, report, pictures)
    print(f"report     {options.out / 'audit.html'}")
    return 0 if audited.compared.any() else 1
