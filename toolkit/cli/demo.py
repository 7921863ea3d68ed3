"""Run ``posters demo``: all steps on a small set of drawn posters, which takes minutes on two cores.

The steps: draw posters → build shards → train → evaluate and write a report → predict → write a page with the results.
"""

from __future__ import annotations

import logging
import shlex
import sys
from itertools import compress
from pathlib import Path

from shards.build.run import BuildOptions, build_shards
from shards.dataset.manifest import Manifest
from shards.dataset.store import open_store
from shards.errors import UserError
from shards.extras import install
from shards.inputs.synthetic import draw_poster_set
from shards.storage.files import write_json
from shards.visuals.contact_sheet import GalleryItem, save_gallery
from toolkit.cli.demo_options import DemoOptions
from toolkit.cli.demo_page import write_demo_page
from toolkit.config.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from toolkit.data.sources.image_files import list_images
from toolkit.data.sources.shard_reader import ShardReader
from toolkit.distributed.collectives import make_accelerator
from toolkit.evaluation.evaluate import evaluate
from toolkit.inference.split_outputs import SplitLogits
from toolkit.model_folder.card import write_card
from toolkit.model_folder.folder import ModelFolder, load_model_folder
from toolkit.prediction.files import predict_files, write_predictions
from toolkit.prediction.formats import ShownOptions
from toolkit.report.build import Report
from toolkit.report.label_errors import INSTALL, have_cleanlab
from toolkit.report.output import check_report_folder, write_report
from toolkit.report.run import ReportRun
from toolkit.training.run import train

log = logging.getLogger(__name__)

GALLERY = 18  # test posters on the contact sheet, three rows of six


def demo_config(seed: int = 0) -> Config:
    """Return the configuration of the demo. configs/demo.yaml has the same values, with comments."""
    return Config(
        data=DataConfig(image_size=64, crop_scale=(0.6, 1.0)),
        model=ModelConfig(name="resnet10t", pretrained=False, head="linear", dropout=0.0, freeze=()),
        optim=OptimConfig(name="adamw", lr=0.003, weight_decay=0.05, schedule="cosine", warmup_steps=20),
        train=TrainConfig(epochs=12, batch_size=32, patience=0, seed=seed),
    )


def run_demo(options: DemoOptions) -> int:
    """Run all steps and write the results below ``out``. A second call continues the first. Return the exit status."""
    out, posters, seed = options.out, options.posters, options.seed
    if out.exists() and not out.is_dir():
        raise UserError("path-exists", f"--out {out} is a file; name a folder")
    check_report_folder(out / "report")  # fail now, and not after the long steps, if the folder cannot be used
    metadata = draw_poster_set(out / "posters", posters, seed)
    log.info("drew %d posters with titles into %s", posters, out / "posters")
    manifest = build_shards(
        BuildOptions(
            metadata=metadata,
            images=out / "posters" / "images",
            out=out / "shards",
            samples_per_shard=128,
            max_rejected=1.0,  # some rows are bad on purpose
        )
    )
    status = train(demo_config(seed), out / "shards", out / "run", resume=True)
    if status:
        return status
    accelerator = make_accelerator()
    model = out / "run" / "model"
    folder = load_model_folder(model)
    evaluation, outputs = evaluate(accelerator, folder, out / "shards", manifest, "test", [0.3, 0.5, 0.7])
    write_json(model / "metrics-test.json", evaluation.to_dict())
    outputs.save(model / "predictions-test.npz")
    write_card(model)

    report = write_demo_report(out, folder, manifest, outputs)
    reader = ShardReader.of_split(out / "shards", "test", manifest)
    images = {path.stem: path for path in list_images(out / "posters" / "images")}
    paths = [images[reader.sample_id(i)] for i in range(len(reader))]
    predictions = predict_files(folder, paths, accelerator)
    shown = ShownOptions(verbose=True)
    write_predictions(predictions, folder, str(accelerator.device), out / "predictions.json", "json", shown)
    true = [list(compress(outputs.genres, row)) for row in outputs.targets]
    items = [
        GalleryItem(path.read_bytes(), genres, [(line.genre, line.probability) for line in lines if line.named])
        for path, genres, lines in zip(paths, true, predictions.ranked(), strict=True)
        if lines
    ]
    save_gallery(out / "predictions.png", items[:GALLERY], title="Test posters: true and predicted genres")
    page = write_demo_page(out, folder, manifest, report, reader.image_bytes)
    _print_results(page, folder, report)
    return 0


def write_demo_report(out: Path, folder: ModelFolder, manifest: Manifest, outputs: SplitLogits) -> Report:
    """Write the report of `posters evaluate` to ``out``/report. The list of label errors needs cleanlab."""
    shards, written = out / "shards", out / "report"
    words = ["posters", "evaluate", "--model", folder.path, "--shards", shards, "--report", written]
    command = shlex.join(str(word) for word in words)
    run = ReportRun(written, folder, None, open_store(shards), manifest, have_cleanlab(), command)
    report = run.build(outputs, None)
    write_report(written, report)
    return report


def _print_results(page: Path, folder: ModelFolder, report: Report) -> None:
    out = page.parent
    for tile in report.numbers["overview"]["tiles"]:
        print(f"{tile['words']}.")
    without = "" if have_cleanlab() else f" (without likely label errors: {INSTALL})"
    print(f"report         {out / 'report' / 'index.html'}{without}")
    # `make demo` starts `posters` by its full path, because `posters` is not on the PATH
    command = sys.argv[0] if Path(sys.argv[0]).name == "posters" else "posters"
    image = min((out / "posters" / "images").glob("p*.jpg"))
    print(f"try            {command} predict -m {folder.path} -i {image} -v")
    print(f"app            {command} app -m {folder.path} (with {install('app')})")
    print(f"all results    {page.absolute().as_uri()}")
