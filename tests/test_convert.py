"""``convert``: every key of a release has its place, the way back gives the names again, foreign files are refused."""

import pickle
import socket
from pathlib import Path

import pytest
import torch
from released import release_of, write_release, zipped_json
from safetensors.torch import load_file, save_file
from tiny_model import CAPTIONS, tiny_config, write_model
from torch import Tensor

from fourdiffusion.convert import convert
from fourdiffusion.diffusion import encoders, release
from fourdiffusion.diffusion.loading import fresh_pipeline
from fourdiffusion.diffusion.pipeline import FourDiffusionPipeline
from fourdiffusion.diffusion.settings import ModelConfig
from fourdiffusion.errors import UserError
from fourdiffusion.files import read_foreign
from fourdiffusion.settings import ConvertConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def full_size() -> FourDiffusionPipeline:
    """The model at full size without memory behind it."""
    with torch.device("meta"):
        return fresh_pipeline(ModelConfig(), encoders.train_tokenizer(CAPTIONS, 600, 77), seed=0)


def shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in tensors.items()}


def test_every_key_of_the_imagedream_release_is_mapped(full_size: FourDiffusionPipeline) -> None:
    known = zipped_json("keys_imagedream_ipmv") | zipped_json("keys_imagedream_clip")
    parts = full_size.unet, full_size.vae, full_size.text_encoder, full_size.image_encoder
    found: dict[str, Tensor] = {}
    for name, mappings in release.imagedream_mappings(*parts).items():
        state = full_size.components[name].state_dict()
        assert mappings.keys() == state.keys()
        found |= release.to_release(mappings, state)
    unread = {key: shape for key, shape in known.items() if release.dropped(key, 23)}
    assert len(unread) == 15  # 12 of the text tower's last block, two projections, one temperature
    assert shapes(found) | unread == known
    assert not found.keys() & unread.keys()


def test_every_key_of_the_4dm_release_is_mapped(full_size: FourDiffusionPipeline) -> None:
    known = zipped_json("keys_4dm")
    unet, motion = full_size.unet, full_size.motion
    tensors = release.to_release(release.motion_mappings(unet, motion), motion.state_dict())
    tables = release.position_tables(unet, motion)
    assert shapes(tensors) | shapes(tables) == known
    assert len(tensors) == len(motion.state_dict())


def test_both_ways_give_the_same_tensors() -> None:
    pipeline = fresh_pipeline(tiny_config(), encoders.train_tokenizer(CAPTIONS, 512, 12), seed=0)
    tensors = release_of(pipeline)
    parts = pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.image_encoder
    for name, mappings in release.imagedream_mappings(*parts).items():
        state = pipeline.components[name].state_dict()
        again = release.from_release(mappings, tensors)
        assert again.keys() == state.keys()
        assert all(torch.equal(again[key], value) for key, value in state.items())


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ipmv.pt and its vocabulary."""
    folder = tmp_path_factory.mktemp("released")
    write_release(folder / "ipmv.pt", tiny_config())
    return folder


def test_motion_layers_travel_alone(released: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    convert(ConvertConfig(output=str(tmp_path / "motion.ckpt"), model=tiny_config(str(model))))
    tensors = read_foreign(tmp_path / "motion.ckpt")
    assert all(key.startswith("module.") for key in tensors)
    config = ConvertConfig(
        str(released / "ipmv.pt"), str(tmp_path / "motion.ckpt"), str(tmp_path / "again"), model=tiny_config()
    )
    convert(config)
    first, second = (FourDiffusionPipeline.from_pretrained(folder).motion for folder in (model, tmp_path / "again"))
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


def test_save_and_load_motion(released: Path, tmp_path: Path) -> None:
    pipeline = FourDiffusionPipeline.from_pretrained(write_model(tmp_path / "model"))
    with torch.no_grad():
        pipeline.motion.layers[0].proj_out.weight.fill_(0.5)
    pipeline.save_motion(tmp_path / "motion")
    other = FourDiffusionPipeline.from_pretrained(tmp_path / "model")
    other.load_motion(tmp_path / "motion")
    assert torch.equal(other.motion.layers[0].proj_out.weight, pipeline.motion.layers[0].proj_out.weight)
    pipeline.motion.register_to_config(channels=[8])
    pipeline.motion.save_config(tmp_path / "motion")
    with pytest.raises((ValueError, RuntimeError)):
        other.load_motion(tmp_path / "motion")


def test_a_diffusers_folder_goes_in(tmp_path: Path) -> None:
    """As others packed ImageDream for diffusers: the UNet under its old names, the rest as the libraries save it."""
    pipeline = fresh_pipeline(tiny_config(), encoders.train_tokenizer(CAPTIONS, 512, 12), seed=0)
    pipeline.save_whole(tmp_path / "given")
    keys = release.unet_keys(pipeline.unet)
    unet = {keys[name]: value for name, value in pipeline.unet.state_dict().items()}
    save_file(unet, tmp_path / "given/unet/diffusion_pytorch_model.safetensors")
    text = tmp_path / "given/text_encoder/model.safetensors"
    save_file({f"text_model.{name}": value for name, value in load_file(text).items()}, text)
    convert(ConvertConfig(str(tmp_path / "given"), output=str(tmp_path / "model"), model=tiny_config()))
    again = FourDiffusionPipeline.from_pretrained(tmp_path / "model")
    for name in ("unet", "vae", "text_encoder", "image_encoder"):
        ours, theirs = again.components[name].state_dict(), pipeline.components[name].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_half_precision_and_plain_padding(released: Path, tmp_path: Path) -> None:
    source = str(released / "ipmv.pt")
    convert(ConvertConfig(source, output=str(tmp_path / "model"), dtype="bfloat16", model=tiny_config()))
    stored = load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    pipeline = FourDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert pipeline.text_encoder.config.pad_token_id == 0


class Code:
    """Code that a checkpoint must never run."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return (print, ("code of a checkpoint ran",))


def with_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": Code()}))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def of_sd15(path: Path) -> None:
    tensors = torch.load(path, weights_only=True)
    tensors["model.diffusion_model.input_blocks.1.1.proj_in.weight"] = torch.zeros(32, 32, 1, 1)
    torch.save({key: value for key, value in tensors.items() if "camera_embed" not in key}, path)


def with_a_stranger(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True) | {"model_ema.decay": torch.zeros(1)}, path)


def with_a_number(path: Path) -> None:
    torch.save(torch.load(path, weights_only=True) | {"epoch": 3}, path)


def a_list(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def without(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "spoil, said",
    [
        (with_code, "more than tensors"),
        (truncated, "damaged"),
        (of_sd15, "camera_embed.0.bias.*of another shape: .*proj_in.weight"),
        (with_a_stranger, "1 unknown: model_ema.decay"),
        (with_a_number, "more than tensors .epoch."),
        (a_list, "holds a list"),
        (without, "no file"),
    ],
)
def test_foreign_files_are_refused(spoil, said, released, tmp_path, capsys):  # type: ignore[no-untyped-def]
    path = tmp_path / "ipmv.pt"
    path.write_bytes((released / "ipmv.pt").read_bytes())
    spoil(path)
    with pytest.raises(UserError, match=said) as caught:
        convert(
            ConvertConfig(
                str(path), output=str(tmp_path / "model"), tokenizer=str(released / "tokenizer"), model=tiny_config()
            )
        )
    assert len(str(caught.value).splitlines()) == 1
    assert not (tmp_path / "model").exists()
    assert "code of a checkpoint ran" not in capsys.readouterr().out


def test_swapped_files_are_named(released: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    motion = tmp_path / "motion.safetensors"
    convert(ConvertConfig(output=str(motion), model=tiny_config(str(model))))
    swapped = ConvertConfig(str(motion), str(released / "ipmv.pt"), str(tmp_path / "out"), model=tiny_config())
    with pytest.raises(UserError, match="give it as motion="):
        convert(swapped)
    twice = ConvertConfig(
        str(released / "ipmv.pt"), str(released / "ipmv.pt"), str(tmp_path / "out"), model=tiny_config()
    )
    with pytest.raises(UserError, match="holds no motion layers"):
        convert(twice)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "config, said",
    [
        (ConvertConfig(output="x"), "give imagedream=FILE"),
        (ConvertConfig("a.pt", output="x", dtype="int8"), "dtype=int8"),
        (ConvertConfig("a.pt", output="."), "exists"),
        (ConvertConfig(output="motion.txt", model=ModelConfig(path="m")), "ends in"),
    ],
)
def test_settings_are_checked(config: ConvertConfig, said: str) -> None:
    with pytest.raises(UserError, match=said):
        convert(config)


def test_without_a_vocabulary_it_says_where_it_looked(released: Path, tmp_path: Path) -> None:
    path = tmp_path / "ipmv.pt"
    path.write_bytes((released / "ipmv.pt").read_bytes())
    with pytest.raises(UserError, match=f"{tmp_path}/tokenizer.*clip-vit-large-patch14.*tokenizer=FOLDER"):
        convert(ConvertConfig(str(path), output=str(tmp_path / "model"), model=tiny_config()))


def test_exclamation_marks_are_read(released: Path, tmp_path: Path) -> None:
    """Filling with number 0 must not make the tokenizer take what has that number for filling."""
    convert(ConvertConfig(str(released / "ipmv.pt"), output=str(tmp_path / "model"), model=tiny_config()))
    pipeline = FourDiffusionPipeline.from_pretrained(tmp_path / "model")
    plain, excited = encoders.encode_text(pipeline.tokenizer, pipeline.text_encoder, ["a ball", "a ball!"])
    assert (plain - excited).abs().max() > 1e-4


# ---- what training scripts and storage do to checkpoints ------------------------------------------------------------


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tensors: {"model": tensors, "epoch": 3},
        lambda tensors: {"state_dict": tensors},
        lambda tensors: {"state_dict": {"model": tensors}},
        lambda tensors: {f"module.{key}": value for key, value in tensors.items()},
        lambda tensors: {"model": {f"_orig_mod.module.{key}": value for key, value in tensors.items()}},
    ],
)
def test_wrapped_checkpoints_are_unwrapped(wrap, released: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    tensors = torch.load(released / "ipmv.pt", weights_only=True)
    torch.save(wrap(tensors), tmp_path / "ipmv.pt")
    plain, motion = tmp_path / "plain.ckpt", tmp_path / "motion.ckpt"
    convert(ConvertConfig(output=str(plain), model=ModelConfig(path=str(write_model(tmp_path / "base")))))
    torch.save(wrap(read_foreign(plain)), motion)
    config = ConvertConfig(
        str(tmp_path / "ipmv.pt"),
        str(motion),
        str(tmp_path / "model"),
        str(released / "tokenizer"),
        model=tiny_config(),
    )
    convert(config)
    key = "model.diffusion_model.out.2.weight"
    stored = load_file(tmp_path / "model/unet/diffusion_pytorch_model.safetensors")
    assert torch.equal(stored["conv_out.weight"], tensors[key])


def test_keys_are_unwrapped_down_to_the_names_of_the_release() -> None:
    """The one ``module.`` of 4DM's own keys stays."""
    value = torch.zeros(1)
    own = {"module.middle_block.2.proj": value}
    assert release.unwrap(own).keys() == own.keys()
    for prefix in ("module.", "module.module.", "_orig_mod.", "module._orig_mod."):
        keys = release.unwrap({prefix + key: value for key in own}).keys()
        assert keys == own.keys(), prefix


@pytest.mark.parametrize(
    "value, said",
    [
        (lambda x: x.fill_(float("nan")), "weights that are NaN or infinite: model.diffusion_model.out.2.weight"),
        (lambda x: x.fill_(float("inf")), "weights that are NaN or infinite: model.diffusion_model.out.2.weight"),
        (lambda x: x.long(), r"not floating point: model.diffusion_model.out.2.weight \(torch.int64\)"),
        (lambda x: x.fill_(1e6), "conv_out.weight is too large for it; choose bfloat16"),
    ],
)
def test_weights_without_meaning_are_refused_by_name(value, said, released, tmp_path):  # type: ignore[no-untyped-def]
    tensors = torch.load(released / "ipmv.pt", weights_only=True)
    key = "model.diffusion_model.out.2.weight"
    torch.save(tensors | {key: value(tensors[key].clone())}, tmp_path / "ipmv.pt")
    output = tmp_path / "model"
    config = ConvertConfig(
        str(tmp_path / "ipmv.pt"),
        output=str(output),
        tokenizer=str(released / "tokenizer"),
        dtype="float16" if "too large" in said else "float32",
        model=tiny_config(),
    )
    with pytest.raises(UserError, match=said) as caught:
        convert(config)
    assert "\n" not in str(caught.value) and not output.exists()


def test_nothing_is_looked_up_on_a_network(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a vocabulary is beside the file nor where it must be refused."""

    def refuse(*arguments: object, **named: object) -> None:
        raise AssertionError("a connection was tried")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    convert(ConvertConfig(str(released / "ipmv.pt"), output=str(tmp_path / "model"), model=tiny_config()))
    (tmp_path / "ipmv.pt").write_bytes((released / "ipmv.pt").read_bytes())
    with pytest.raises(UserError, match="give its folder with tokenizer=FOLDER"):
        convert(ConvertConfig(str(tmp_path / "ipmv.pt"), output=str(tmp_path / "other"), model=tiny_config()))
