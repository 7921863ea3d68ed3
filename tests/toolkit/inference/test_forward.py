"""The forward pass: what the model gives, its mirror image, its features, in half precision and compiled."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.config.options import ForwardOptions
from toolkit.data.transforms.preprocessing import Preprocessing
from toolkit.inference.forward import Forward
from toolkit.models.factory import build_model
from toolkit.models.heads import HeadSpec, classifier_path

SIDE = 32
PREPROCESSING = Preprocessing(SIDE, 1.0, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4))
HEADS = {
    "linear": HeadSpec("linear", (), 0.1),
    "mlp": HeadSpec("mlp", (16,), 0.1),
    "levels": HeadSpec("levels", (), 0.1),
    "ensemble": HeadSpec("ensemble", (16,), 0.1, members=3),
}


def model_of(head: str) -> nn.Module:
    torch.manual_seed(0)
    return build_model("test_resnet", 5, HEADS[head], SIDE).eval()


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE, 3), dtype=np.uint8))


def reference(model: nn.Module, pixels: torch.Tensor) -> np.ndarray:
    """(n, G) logits, in plain torch."""
    mean, std = torch.tensor(PREPROCESSING.mean), torch.tensor(PREPROCESSING.std)
    with torch.inference_mode():
        return model(((pixels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()).numpy()


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_logits_are_the_models(head: str, channels_last: bool, pixels: torch.Tensor) -> None:
    model = model_of(head)
    forward = Forward(model, PREPROCESSING, options=ForwardOptions(channels_last))
    logits, embeddings = forward(pixels).arrays()
    assert embeddings is None and logits.dtype == np.float32
    np.testing.assert_allclose(logits, reference(model, pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_embeddings_are_what_the_classifier_is_given(head: str, pixels: torch.Tensor) -> None:
    model = model_of(head)
    given: list[torch.Tensor] = []
    classifier = model.get_submodule(classifier_path(model))
    classifier.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    logits, embeddings = Forward(model, PREPROCESSING, options=ForwardOptions(embeddings=True))(pixels).arrays()
    assert embeddings is not None
    np.testing.assert_array_equal(embeddings, given[0].numpy())
    np.testing.assert_allclose(logits, reference(model, pixels), rtol=1e-4, atol=1e-5)


def test_flip_is_the_mean_of_both_sides(pixels: torch.Tensor) -> None:
    model = model_of("mlp")
    logits, _ = Forward(model, PREPROCESSING, options=ForwardOptions(tta="flip"))(pixels).arrays()
    straight, mirrored = reference(model, pixels), reference(model, pixels.flip(2))
    assert np.abs(straight - mirrored).max() > 1e-3
    np.testing.assert_allclose(logits, (straight + mirrored) / 2, rtol=1e-4, atol=1e-5)
    # so the mirror image has the same answer, and the same embedding
    both = Forward(model, PREPROCESSING, options=ForwardOptions(tta="flip", embeddings=True))
    one, other = both(pixels).arrays(), both(pixels.flip(2)).arrays()
    np.testing.assert_allclose(one[0], other[0], atol=1e-6)
    np.testing.assert_allclose(one[1], other[1], atol=1e-6)  # type: ignore[arg-type]


def test_half_precision_is_used_and_near(pixels: torch.Tensor) -> None:
    model = model_of("linear")
    seen: list[torch.dtype] = []
    model.get_submodule("layer1").register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    logits, _ = Forward(model, PREPROCESSING, torch.bfloat16)(pixels).arrays()
    assert seen == [torch.bfloat16] and logits.dtype == np.float32
    expected = reference(model, pixels)
    assert 0 < np.abs(logits - expected).max() < 0.05 * np.abs(expected).max() + 0.02


def test_the_memory_of_a_batch_may_be_used_again(pixels: torch.Tensor) -> None:
    model = model_of("linear")
    copy = pixels.clone()
    answer = Forward(model, PREPROCESSING)(copy)
    copy.zero_()
    np.testing.assert_allclose(answer.arrays()[0], reference(model, pixels), rtol=1e-4, atol=1e-5)


def test_short_batches_of_a_compiled_model_are_filled_up(pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def compiled(module: nn.Module) -> nn.Module:
        module.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    model = model_of("linear")
    forward = Forward(model, PREPROCESSING, options=ForwardOptions(compile=True), full_batch=6)
    logits, _ = forward(pixels[:4]).arrays()
    assert sizes == [6] and logits.shape == (4, 5)
    np.testing.assert_allclose(logits, reference(model, pixels[:4]), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile on a CPU wants a C++ compiler")
def test_compiled_for_real(pixels: torch.Tensor) -> None:
    model = model_of("linear")
    forward = Forward(model, PREPROCESSING, options=ForwardOptions(compile=True), full_batch=6)
    for batch in (pixels, pixels[:3]):
        np.testing.assert_allclose(forward(batch).arrays()[0], reference(model, batch), rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
def test_on_a_gpu(pixels: torch.Tensor) -> None:
    model = model_of("levels")
    expected = reference(model, pixels)
    forward = Forward(model.cuda(), PREPROCESSING, options=ForwardOptions(embeddings=True))
    answers = [forward(pixels.cuda()) for _ in range(3)]
    for answer in answers:
        np.testing.assert_allclose(answer.arrays()[0], expected, rtol=1e-2, atol=1e-2)
