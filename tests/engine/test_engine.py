import numpy as np
import pytest
import torch

import tore_fast
from tore_fast.engine import Engine
from tore_fast.engine.staging import HostStaging
from tore_fast.geometry.warp import normalise_image
from tore_fast.models import create_model, load

SIZE = (3, 112, 112)


@pytest.fixture(scope="module")
def model():
    return load("default")


@pytest.fixture(scope="module")
def engine(model):
    return Engine(model, "cpu", "fp32", batch=4)


def test_it_is_a_name_of_the_package():
    assert tore_fast.Engine is Engine


def test_batches_of_any_size_are_the_models(model, engine):
    x = torch.randn(7, *SIZE)
    with torch.no_grad():
        want = model(x)
    got = engine(x)
    assert type(got) is type(want)
    torch.testing.assert_close(got.vertices, want.vertices, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.camera, want.camera, rtol=1e-4, atol=1e-5)
    assert got.vertices_intermediate.shape[0] == 7 and got.rotmat is None


def test_the_module_handed_in_stays_as_it_is(model, engine):
    assert engine.report().folded > 0 and not model.prepared
    assert any(isinstance(m, torch.nn.BatchNorm2d) for m in model.modules())


def test_uint8_images_are_normalised_on_the_way(engine):
    pixels = torch.randint(0, 256, (2, *SIZE), dtype=torch.uint8)
    want = engine(normalise_image(pixels))
    for given in (pixels, pixels.permute(0, 2, 3, 1).contiguous(), pixels.permute(0, 2, 3, 1).numpy()):
        torch.testing.assert_close(engine(given).vertices, want.vertices, rtol=1e-4, atol=1e-5)


def test_stream_keeps_the_order(engine):
    batches = [torch.randn(n, *SIZE) for n in (1, 3, 2)]
    for x, out in zip(batches, engine.stream(batches), strict=True):
        torch.testing.assert_close(out.camera, engine(x).camera)


def test_the_path_of_the_graphs_on_the_cpu(model):
    """Buckets, slots and padding as on a GPU; the step is a plain call."""
    graph = Engine(model, "cpu", "fp32", batch=4, mode="graph", platform=HostStaging())
    x = torch.randn(7, *SIZE)
    with torch.no_grad():
        want = model(x)
    pending = [graph.submit(x[:3]), graph.submit(x[3:]), graph.submit(x[:1])]
    torch.testing.assert_close(pending[0].result().vertices, want.vertices[:3], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pending[1].result().vertices, want.vertices[3:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(pending[2].result().vertices, want.vertices[:1], rtol=1e-4, atol=1e-5)
    assert graph.report().captured == [4, 1]
    with pytest.raises(ValueError, match="NaN"):
        graph(torch.full((1, *SIZE), float("nan")))


def test_a_capture_that_fails_is_said_or_raised(model):
    class Refuses(HostStaging):
        def capture(self, step):
            raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        Engine(model, "cpu", "fp32", batch=2, mode="graph", platform=Refuses())(torch.zeros(1, *SIZE))


@pytest.mark.parametrize(
    "given, error, text",
    [
        (torch.zeros(0, *SIZE), ValueError, "empty"),
        (torch.zeros(1, 3, 112, 96), ValueError, r"\[B, 3, 112, 112\], got \[1, 3, 112, 96\]"),
        (torch.zeros(*SIZE), ValueError, "must be"),
        (torch.zeros(1, *SIZE, dtype=torch.int64), TypeError, "floating point or uint8"),
        (torch.full((1, *SIZE), float("nan")), ValueError, "NaN"),
        (torch.full((1, *SIZE), float("inf")), ValueError, "NaN or infinity"),
        (torch.zeros(1, *SIZE, device="meta"), ValueError, "engine on cpu"),
        ([[1.0]], TypeError, "tensor or an array"),
        (np.zeros((1, *SIZE), np.complex64), TypeError, "floating point or uint8"),
    ],
)
def test_bad_input_is_refused(engine, given, error, text):
    with pytest.raises(error, match=text):
        engine(given)


@pytest.mark.parametrize(
    "kwargs, error, text",
    [
        ({"precision": "int8"}, ValueError, "precision must be"),
        ({"precision": "tf32"}, ValueError, "NVIDIA"),
        ({"mode": "fast"}, ValueError, "mode must be"),
        ({"mode": "graph"}, ValueError, "CUDA"),
        ({"batch": 0}, ValueError, "at least 1"),
        ({"batch": (4, 2)}, ValueError, "ascending"),
        ({"device": "tpu"}, ValueError, "device"),
        ({"image_size": 64}, TypeError, "built already"),
    ],
)
def test_bad_settings_are_refused(model, kwargs, error, text):
    with pytest.raises(error, match=text):
        Engine(model, **{"device": "cpu", **kwargs})


def test_training_mode_is_refused():
    with pytest.raises(RuntimeError, match=r"eval\(\)"):
        Engine(create_model("mixste_27"), "cpu")


def test_weights_that_change_are_noticed_and_refresh_takes_them():
    model = create_model("mixste_27").eval()
    engine = Engine(model, "cpu", "fp32")
    x = torch.randn(1, 27, 17, 2)
    before = engine(x).pose
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    with pytest.raises(RuntimeError, match="refresh"):
        engine(x)
    engine.refresh()
    with torch.no_grad():
        torch.testing.assert_close(engine(x).pose, model(x).pose, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(engine(x).pose, before)


def test_the_report_says_what_was_done(model):
    text = str(Engine(model, "cpu", "bf16", batch=2).report())
    assert "bf16: asked for" in text and "batch norms" in text and "graphs are a thing of CUDA" in text


def test_integer_input_of_a_model_without_images_is_refused():
    with pytest.raises(TypeError, match="must be floating point, got"):
        Engine(create_model("mixste_27").eval(), "cpu")(torch.zeros(1, 27, 17, 2, dtype=torch.uint8))


def test_hosts_take_the_crop_with_and_without_its_sides():
    model = create_model("hmr2_vitt").eval()
    engine, (height, width) = Engine(model, "cpu", "fp32"), model.config.img_size
    side = (height - width) // 2
    x = torch.randn(1, 3, height, height)
    torch.testing.assert_close(engine(x).betas, engine(x[..., side : height - side]).betas)
    with pytest.raises(ValueError, match="must be"):
        engine(x[..., 1:])


def test_a_network_that_is_put_in_training_mode_is_refused():
    engine = Engine(create_model("mixste_27").eval(), "cpu", "fp32")
    engine.network.train()
    with pytest.raises(RuntimeError, match="training mode"):
        engine(torch.zeros(1, 27, 17, 2))


@pytest.mark.parametrize(
    "index, error, text",
    [
        (torch.zeros(3, 9, dtype=torch.int64), ValueError, "2 rows like the images"),
        (torch.tensor(1), ValueError, "2 rows"),
        (torch.zeros(2, 9, dtype=torch.int64, device="meta"), ValueError, "engine on cpu"),
        ([1, 2], TypeError, "argument 1"),
    ],
)
def test_bad_further_arguments_are_refused(index, error, text):
    with pytest.raises(error, match=text):
        Engine(create_model("hot_mixste_27").eval(), "cpu", "fp32")(torch.zeros(2, 27, 17, 2), index)
