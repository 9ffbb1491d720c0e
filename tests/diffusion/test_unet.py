"""The frozen UNet and the motion layers handed to it: apart they agree, together every motion parameter learns."""

from typing import NamedTuple

import pytest
import torch
from tiny_model import tiny_pipeline
from torch import Tensor

from fourdiffusion import cameras
from fourdiffusion.diffusion.attention import KeysValues, MultiviewTransformer, SelfAttention, grid_positions
from fourdiffusion.diffusion.motion import MotionModules
from fourdiffusion.diffusion.multiview_unet import MultiviewUNet


class Inputs(NamedTuple):
    z: Tensor
    timestep: Tensor
    text: Tensor
    image: Tensor
    camera: Tensor


def make_inputs(batch: int = 2, frames: int = 3, views: int = 3, side: int = 4) -> Inputs:
    """Random conditions; the last view is the extra one."""
    generator = torch.Generator().manual_seed(0)
    c2w = cameras.orbit(torch.arange(views - 1) * 70.0)
    camera = torch.cat([cameras.conditioning(c2w), torch.zeros(1, 16)]).expand(batch, -1, -1)
    return Inputs(
        torch.randn(batch, frames, views, 4, side, side, generator=generator),
        torch.randint(1000, (batch,), generator=generator),
        torch.randn(batch, 5, 32, generator=generator),
        torch.randn(batch, frames, 5, 32, generator=generator),
        camera,
    )


def predict(unet: MultiviewUNet, inputs: Inputs, motion: MotionModules | None = None) -> Tensor:
    context = unet.encode_context(inputs.text, inputs.image)
    return unet(inputs.z, inputs.timestep, context, inputs.camera, motion)


@pytest.fixture(scope="module")
def fresh() -> tuple[MultiviewUNet, MotionModules]:
    pipeline = tiny_pipeline()
    return pipeline.unet, pipeline.motion


@pytest.fixture(scope="module")
def moving() -> tuple[MultiviewUNet, MotionModules]:
    pipeline = tiny_pipeline(moving=True)
    return pipeline.unet.requires_grad_(False), pipeline.motion


@torch.no_grad()
def test_fresh_motion_layers_change_nothing(fresh: tuple[MultiviewUNet, MotionModules]) -> None:
    unet, motion = fresh
    inputs = make_inputs()
    together = predict(unet, inputs, motion)
    assert torch.equal(together, predict(unet, inputs))
    for f in range(3):
        alone = inputs._replace(z=inputs.z[:, f : f + 1], image=inputs.image[:, f : f + 1])
        torch.testing.assert_close(together[:, f : f + 1], predict(unet, alone), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_trained_motion_layers_join_the_frames(moving: tuple[MultiviewUNet, MotionModules]) -> None:
    unet, motion = moving
    inputs = make_inputs()
    changed = inputs._replace(z=inputs.z.clone())
    changed.z[:, 0] += 1
    assert (predict(unet, changed, motion) - predict(unet, inputs, motion))[:, 1:].abs().max() > 1e-3
    torch.testing.assert_close(predict(unet, changed)[:, 1:], predict(unet, inputs)[:, 1:], atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_clips_of_a_batch_never_meet(moving: tuple[MultiviewUNet, MotionModules]) -> None:
    unet, motion = moving
    inputs = make_inputs()
    together = predict(unet, inputs, motion)
    for b in range(2):
        alone = Inputs(*(value[b : b + 1] for value in inputs))
        torch.testing.assert_close(together[b : b + 1], predict(unet, alone, motion), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_order_of_views_does_not_matter(moving: tuple[MultiviewUNet, MotionModules]) -> None:
    unet, motion = moving
    inputs = make_inputs(views=4)
    order = torch.tensor([2, 0, 1, 3])
    moved = inputs._replace(z=inputs.z[:, :, order], camera=inputs.camera[:, order])
    expected = predict(unet, inputs, motion)[:, :, order]
    torch.testing.assert_close(predict(unet, moved, motion), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_views_of_a_frame_meet(fresh: tuple[MultiviewUNet, MotionModules]) -> None:
    inputs = make_inputs()
    changed = inputs._replace(z=inputs.z.clone())
    changed.z[:, :, -1] += 1  # the extra view
    assert (predict(fresh[0], changed) - predict(fresh[0], inputs))[:, :, :-1].abs().max() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("frames, views, side", [(1, 2, 2), (8, 3, 2), (2, 7, 4)])
def test_any_number_of_frames_and_views(
    moving: tuple[MultiviewUNet, MotionModules], frames: int, views: int, side: int
) -> None:
    inputs = make_inputs(1, frames, views, side)
    noise = predict(moving[0], inputs, moving[1])
    assert noise.shape == inputs.z.shape and bool(noise.isfinite().all())


@torch.no_grad()
def test_too_many_frames_are_refused(moving: tuple[MultiviewUNet, MotionModules]) -> None:
    with pytest.raises(ValueError, match="9 frames, .* 8 positions"):
        predict(moving[0], make_inputs(1, 9, 2, 2), moving[1])
    predict(moving[0], make_inputs(1, 9, 2, 2))  # the image model takes any number


def gradients(unet: MultiviewUNet, motion: MotionModules) -> dict[str, Tensor | None]:
    motion.zero_grad(set_to_none=True)
    noise = predict(unet, make_inputs(), motion)
    (noise * torch.linspace(-1, 1, noise.numel()).view_as(noise)).sum().backward()
    return {name: parameter.grad for name, parameter in motion.named_parameters()}


def test_every_motion_parameter_learns(moving: tuple[MultiviewUNet, MotionModules]) -> None:
    unet, motion = moving
    found = {}
    for checkpointing in (False, True):
        (unet.enable_gradient_checkpointing if checkpointing else unet.disable_gradient_checkpointing)()
        found[checkpointing] = gradients(unet, motion)
        for name, gradient in found[checkpointing].items():
            assert gradient is not None and float(gradient.abs().max()) > 0, (name, checkpointing)
    unet.disable_gradient_checkpointing()
    for name, gradient in found[False].items():
        torch.testing.assert_close(found[True][name], gradient, msg=name)
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_gradient_checkpointing_recomputes_the_blocks(moving: tuple[MultiviewUNet, MotionModules]) -> None:
    """Else the test above would compare a thing with itself."""
    unet, motion = moving
    calls = []
    hook = motion.layers[0].register_forward_pre_hook(lambda *_: calls.append(1))
    unet.enable_gradient_checkpointing()
    gradients(unet, motion)
    unet.disable_gradient_checkpointing()
    hook.remove()
    assert len(calls) == 2


def test_fresh_motion_layers_begin_to_learn(fresh: tuple[MultiviewUNet, MotionModules]) -> None:
    """Their last Linear is zero, so it alone has a gradient that is not zero at first; none is missing."""
    for name, gradient in gradients(*fresh).items():
        assert gradient is not None, name
        assert bool(gradient.any()) == ("proj_out" in name), name


def test_context_has_an_entry_a_block(fresh: tuple[MultiviewUNet, MotionModules]) -> None:
    unet = MultiviewUNet(
        channels=[32, 64], attention_levels=[False, True], blocks_per_level=1, head_dim=16, context_dim=32, image_dim=32
    )
    inputs = make_inputs()
    context = unet.encode_context(inputs.text, inputs.image)
    assert len(context) == len(list(unet.blocks())) == len(unet.block_channels()) == 2 + 1 + 4
    assert [entry is None for entry in context] == [True, False, False, False, False, True, True]
    assert all(isinstance(entry, KeysValues) for entry in context if entry is not None)
    motion = MotionModules(unet.block_channels(), 2, 8)
    assert torch.equal(predict(unet, inputs, motion), predict(unet, inputs))
    with pytest.raises(ValueError):  # motion layers of another UNet: zip(strict=True)
        predict(unet, inputs, MotionModules(unet.block_channels()[:-1], 2, 8))


def test_unknown_prediction_is_refused() -> None:
    with pytest.raises(ValueError, match="prediction_type=x0 is not one of epsilon, v_prediction"):
        MultiviewUNet(channels=[32], attention_levels=[True], prediction_type="x0")


@torch.no_grad()
@pytest.mark.parametrize("positions", [False, True])
def test_attention_is_told_places_or_not(positions: bool) -> None:
    """Without positions a transformer treats its tokens alike: exchanging them exchanges its answers."""
    torch.manual_seed(0)
    layer = MultiviewTransformer(32, 16, 16, 8, positions)
    context = layer.block.attn2.project(torch.randn(1, 3, 16), torch.randn(1, 1, 2, 16))
    x = torch.randn(2, 32, 4, 4)
    turned = layer(x.flip(-1), context, 1, 2).flip(-1)
    assert torch.allclose(turned, layer(x, context, 1, 2), atol=1e-5) != positions


def test_positions_tell_rows_and_columns_apart() -> None:
    places = grid_positions(16, 8, 96, torch.device("cpu"))
    assert places.shape == (128, 96)
    distance = torch.cdist(places, places) + 1e9 * torch.eye(128)
    assert distance.min() > 1
    torch.testing.assert_close(places[:8, :48], places[:1, :48].expand(8, -1))  # one row
    assert not torch.allclose(places[0, 48:], places[1, 48:])


def test_keys_start_as_queries() -> None:
    layer = SelfAttention(32, 16)
    assert torch.equal(layer.to_k.weight, layer.to_q.weight)
    assert layer.to_k.weight.data_ptr() != layer.to_q.weight.data_ptr()
