import pytest
import torch
from torch import nn

from tore_fast.engine import fold_batch_norms


def trained(model):
    """Norms with statistics and scales that matter."""
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(m.running_mean)
            nn.init.uniform_(m.running_var, 0.5, 2)
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return model.eval()


def norms(model):
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


class Named(nn.Module):
    """Registered in another order than they run in, with a branch, a shared norm and a result that two layers read."""

    def __init__(self):
        super().__init__()
        self.norm_a, self.norm_b, self.norm_c, self.norm_d = (nn.BatchNorm2d(4, affine=i > 0) for i in range(4))
        self.twice = nn.BatchNorm2d(4)
        self.d, self.c, self.b, self.a = (nn.Conv2d(4, 4, 3, padding=1, bias=i % 2 == 0) for i in range(4))

    def forward(self, x):
        x = self.norm_a(self.a(x)).relu()  # folded
        y = self.b(x)
        z = self.norm_b(y) + y  # the result is read without its norm, too
        w = self.twice(self.c(z)) + self.twice(x)  # one norm, two inputs
        return self.norm_d(self.d(w)) + self.norm_c(w)  # d folded; c reads a sum


def test_only_what_is_safe_is_folded():
    model, x = trained(Named()), torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        want = model(x)
    assert fold_batch_norms(model, lambda: model(x)) == 2
    assert isinstance(model.norm_a, nn.Identity) and isinstance(model.norm_d, nn.Identity) and norms(model) == 3
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "conv, norm, shape",
    [
        (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d(6), (2, 4, 9)),
        (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), (2, 4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), (2, 4, 5, 5)),
    ],
)
def test_kinds(conv, norm, shape):
    model, x = trained(nn.Sequential(conv, norm, nn.ReLU())), torch.randn(shape)
    with torch.no_grad():
        want = model(x)
    assert fold_batch_norms(model, lambda: model(x)) == 1
    torch.testing.assert_close(model(x), want, rtol=1e-5, atol=1e-5)


def test_grouped_transposed_and_stateless_norms_stay():
    model = trained(nn.Sequential(nn.ConvTranspose2d(4, 4, 2, groups=2), nn.BatchNorm2d(4)))
    assert fold_batch_norms(model, lambda: model(torch.randn(1, 4, 5, 5))) == 0
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert fold_batch_norms(model, lambda: model(torch.randn(1, 4, 5, 5))) == 0


@pytest.mark.parametrize("name", ["resnet50", "hrnet_w64", "efficientnet_b0"])
def test_backbones_lose_all_their_norms(name):
    from tore_fast.models.backbones import create_backbone

    model, x = trained(create_backbone(name, 32, False, False)).double(), torch.randn(1, 3, 64, 64).double()
    with torch.no_grad():
        want = model(x)
    fold_batch_norms(model, lambda: model(x))
    assert norms(model) == 0
    torch.testing.assert_close(model(x), want, rtol=1e-6, atol=1e-6)


def test_training_mode_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with pytest.raises(RuntimeError, match="eval"):
        fold_batch_norms(model, lambda: model(torch.zeros(1, 3, 5, 5)))
