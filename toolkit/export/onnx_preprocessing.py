"""The preprocessing of evaluation as ONNX nodes, from (n, H, W, 3) uint8 pixels to the input of the network.

Pillow's antialiased BILINEAR equals ONNX's Resize with antialias and exclude_outside. The horizontal and the vertical
pass are two nodes. The result of each pass is rounded to whole numbers, as in Pillow. Some pixels still differ from
Pillow's pixels by 1 of 255: the roundings are not equal, and Pillow 13 can do the vertical pass first.
`test_export_preprocess.py` measures the differences.

The nodes compute all sizes as integers. For Python's `int(a / b)`, they use an integer division.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.inference.onnx_runtime import INPUT

#: Output of the last node and input of the network: (n, 3, S, S) float32.
NORMALISED = "normalised"
#: The first opset whose Resize has antialias.
MIN_OPSET = 18


class _Nodes:
    """Collects ONNX nodes and constants. Each method returns the name of its result."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def __call__(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        from onnx import helper

        result = name or f"preprocess/{len(self.nodes)}_{kind}"
        self.nodes.append(helper.make_node(kind, list(inputs), [result], **attributes))
        return result

    def constant(self, values: Any, dtype: Any = np.int64) -> str:
        from onnx import numpy_helper

        name = f"preprocess/constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name


def preprocess_nodes(preprocessing: Preprocessing) -> tuple[list[Any], list[Any]]:
    """Return nodes and constants that convert ``images`` (n, H, W, 3) uint8 to ``normalised`` (n, 3, S, S) float32."""
    from onnx import TensorProto

    build = _Nodes()
    side = build.constant([preprocessing.image_size])
    shape = build("Shape", INPUT)
    height, width = (build("Gather", shape, build.constant([axis])) for axis in (1, 2))
    pixels = build("Cast", build("Transpose", INPUT, perm=[0, 3, 1, 2]), to=TensorProto.FLOAT)
    if preprocessing.fit == "stretch":
        pixels = _resize(build, pixels, side, side)
    else:
        size = preprocessing.image_size
        least = build.constant([max(size, round(size / preprocessing.crop_pct))])
        # The shorter side becomes `least`. The longer side becomes `int(least * longer / shorter)`.
        shorter = build("Min", height, width)
        new_height, new_width = (
            build("Max", least, build("Div", build("Mul", least, side_in), shorter)) for side_in in (height, width)
        )
        pixels = _resize(build, pixels, new_height, new_width)
        corner = build("Concat", *(_crop_start(build, new, size) for new in (new_height, new_width)), axis=0)
        end = build("Add", corner, side)
        pixels = build("Slice", pixels, corner, end, build.constant([2, 3]))
    mean, std = (
        build.constant((np.asarray(values, np.float32) * np.float32(255.0)).reshape(3, 1, 1), np.float32)
        for values in (preprocessing.mean, preprocessing.std)
    )
    build("Div", build("Sub", pixels, mean), std, name=NORMALISED)
    return build.nodes, build.constants


def _crop_start(build: _Nodes, length: str, size: int) -> str:
    """Add nodes that compute `round((length - size) / 2.0)`. Like Python's `round`, they round halves to even."""
    spare = build("Sub", length, build.constant([size]))
    two = build.constant([2])
    half = build("Div", spare, two)  # ONNX truncates, which equals floor because the number is not negative
    odd_twice = build("Mul", build("Mod", spare, two), build("Mod", half, two))
    return build("Add", half, odd_twice)


def _resize(build: _Nodes, pixels: str, height: str, width: str) -> str:
    """Add nodes that resize (n, 3, H, W) to (n, 3, height, width). The results are whole numbers in float32."""
    half = build.constant(0.5, np.float32)
    for kept, sizes in ((3, [width]), (2, [height, width])):
        before = build("Shape", pixels, start=0, end=kept)
        pixels = build(
            "Resize",
            pixels,
            "",
            "",
            build("Concat", before, *sizes, axis=0),
            mode="linear",
            antialias=1,
            exclude_outside=1,
            coordinate_transformation_mode="half_pixel",
        )
        pixels = build("Floor", build("Add", pixels, half))
    return pixels


def images_info() -> Any:
    """Return the description of the graph's input: decoded images of equal size."""
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", "height", "width", 3])
