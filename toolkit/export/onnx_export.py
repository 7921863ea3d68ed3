"""Export a model to one ONNX file with its network, calibration, metadata, and optional preprocessing."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch

from shards.errors import UserError, one_line
from shards.extras import require_extra
from toolkit.export.network import OUTPUTS, ExportNetwork, facts, quiet
from toolkit.export.onnx_preprocessing import MIN_OPSET, NORMALISED, images_info, preprocess_nodes
from toolkit.export.parity_check import Run
from toolkit.inference.onnx_runtime import FACTS_KEY, INPUT, open_exported, read_facts, run_session
from toolkit.model_folder.folder import ModelFolder

CPU = torch.device("cpu")
#: Largest size of all weights in bytes. Protobuf limits an ONNX file to 2 GiB. 16 MiB of this limit are for the graph.
MAX_WEIGHTS = 2**31 - 2**24


def exported(folder: ModelFolder, preprocess: bool, opset: int | None) -> bytes:
    """Return the content of the ONNX file. ``opset`` is MIN_OPSET by default.

    The batch size is dynamic. With ``preprocess``, height and width are dynamic, too. Raises UserError if packages are
    missing, if the opset is not supported, or if torch cannot export the network.
    """
    onnx = require_extra("export", "ONNX export", "onnx", "onnxscript", "onnxruntime")
    opset = MIN_OPSET if opset is None else opset

    if not MIN_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise UserError(
            "option-value",
            f"--opset must be from {MIN_OPSET} to {onnx.defs.onnx_opset_version()} (with onnx {onnx.__version__}), "
            f"not {opset}",
        )
    network = ExportNetwork(folder)
    size = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    if size > MAX_WEIGHTS:
        raise UserError(
            "export-unsupported",
            f"{folder.path} has {size / 2**30:.2f} GiB of weights, but a single ONNX file is limited to 2 GiB: use "
            f"--format torch-export",
        )
    model = _network_graph(network, folder, opset)
    if preprocess:
        _prepend(model.graph, *preprocess_nodes(folder.preprocessing))
    onnx.helper.set_model_props(model, {FACTS_KEY: json.dumps(facts(folder, preprocess, opset))})
    onnx.checker.check_model(model)
    return model.SerializeToString()


def opened(path: Path, preprocess: bool) -> Run:
    """Return a function that runs a file on the CPU. With ``preprocess``, it also returns the preprocessed pixels."""
    session = open_exported(path, CPU)
    read_facts(session, path)
    if preprocess:
        import onnx

        model = onnx.load(path)
        pixels = onnx.helper.make_tensor_value_info(NORMALISED, onnx.TensorProto.FLOAT, None)
        model.graph.output.append(pixels)
        session = open_exported(model.SerializeToString(), CPU)
    return partial(run_session, session)


def _network_graph(network: ExportNetwork, folder: ModelFolder, opset: int) -> Any:
    """Export the network without preprocessing. Return an onnx.ModelProto with the input ``images``."""
    example = torch.zeros(2, 3, *[folder.preprocessing.image_size] * 2)  # torch makes a batch size of 1 constant
    try:
        with quiet():
            program = torch.onnx.export(
                network,
                (example,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
            model: Any = program.model_proto  # type: ignore[union-attr]
    except Exception as error:  # torch.export and onnxscript raise many types of exceptions
        raise UserError(
            "export-unsupported",
            f"torch cannot export {folder.config['architecture']} to ONNX ({type(error).__name__}: "
            f"{one_line(error)[:300]}); try --format torch-export",
        ) from None
    written = {entry.domain: entry.version for entry in model.opset_import}
    if written.get("") != opset:
        raise UserError(
            "export-unsupported", f"torch's exporter wrote opset {written.get('')} instead of {opset}: remove --opset"
        )
    return model


def _prepend(graph: Any, nodes: list[Any], constants: list[Any]) -> None:
    """Insert the preprocessing before the network, in place. The network then reads the output of the preprocessing."""
    for node in graph.node:
        for index, name in enumerate(node.input):
            if name == INPUT:
                node.input[index] = NORMALISED
    network_nodes = list(graph.node)
    del graph.node[:], graph.input[:]
    graph.node.extend([*nodes, *network_nodes])
    graph.input.extend([images_info()])
    graph.initializer.extend(constants)
