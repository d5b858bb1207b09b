"""Small re-creations of other projects' models: the attribute and key names and the arithmetic of their published
interface."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class MaskedBias(nn.Linear):
    """qkv whose bias is multiplied by a buffer (0 for the keys)."""

    def __init__(self, dim):
        super().__init__(dim, 3 * dim)
        mask = torch.ones(3 * dim)
        mask[dim : 2 * dim] = 0
        self.register_buffer("bias_mask", mask)

    def forward(self, x):
        return F.linear(x, self.weight, self.bias * self.bias_mask)


class RotaryAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads = heads
        self.qkv, self.proj = MaskedBias(dim), nn.Linear(dim, dim)

    def apply_rope(self, q, k, rope):
        sin, cos = rope
        kind, front = q.dtype, q.shape[-2] - sin.shape[-2]

        def turn(t):
            t = t.to(sin.dtype)
            low, high = t[..., front:, :].chunk(2, -1)
            turned = t[..., front:, :] * cos + torch.cat((-high, low), -1) * sin
            return torch.cat((t[..., :front, :], turned), -2).to(kind)

        return turn(q), turn(k)

    def forward(self, x, rope=None):
        b, n, c = x.shape
        q, k, v = (t.transpose(1, 2) for t in self.qkv(x).reshape(b, n, 3, self.num_heads, -1).unbind(2))
        if rope is not None:
            q, k = self.apply_rope(q, k, rope)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c))


class Scale(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.gamma = nn.Parameter(torch.empty(dim))

    def forward(self, x):
        return x * self.gamma


class SwiGLU(nn.Module):
    def __init__(self, dim, hidden):
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(dim, hidden), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x):
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class RotaryBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-5), nn.LayerNorm(dim, eps=1e-5)
        self.attn, self.mlp = RotaryAttention(dim, heads), SwiGLU(dim, 2 * dim)
        self.ls1, self.ls2 = Scale(dim), Scale(dim)

    def forward(self, x_or_x_list, rope_or_rope_list=None):
        x = x_or_x_list + self.ls1(self.attn(self.norm1(x_or_x_list), rope_or_rope_list))
        return x + self.ls2(self.mlp(self.norm2(x)))


class Rope(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.register_buffer("periods", 100 ** (torch.arange(width // 4) * 4 / width))
        self.calls = 0

    def forward(self, *, H, W):
        self.calls += 1
        y, x = ((torch.arange(n) + 0.5) / n * 2 - 1 for n in (H, W))
        grid = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).reshape(-1, 2)
        angle = (2 * torch.pi * grid[:, :, None] / self.periods).flatten(1).tile(2)
        return angle.sin(), angle.cos()


class RotaryViT(nn.Module):
    """The ViT of the dinov3 repository in small: class and storage tokens, one table per block."""

    def __init__(self, dim=32, depth=6, heads=2, storage=4):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, dim, 16, 16)
        self.cls_token, self.storage_tokens = (
            nn.Parameter(torch.randn(1, 1, dim)),
            nn.Parameter(torch.randn(1, storage, dim)),
        )
        self.n_storage_tokens = storage
        self.rope_embed = Rope(dim // heads)
        self.blocks = nn.ModuleList(RotaryBlock(dim, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)

    def forward(self, img):
        x = self.patch_embed(img)
        rows, columns = x.shape[-2:]
        b = len(img)
        front = torch.cat((self.cls_token, self.storage_tokens), 1).expand(b, -1, -1)
        x = torch.cat((front, x.flatten(2).transpose(1, 2)), 1)
        for block in self.blocks:
            x = block(x, self.rope_embed(H=rows, W=columns))
        x = self.norm(x)[:, front.shape[1] :]
        return x.transpose(1, 2).reshape(b, -1, rows, columns)


class PoseAttention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = (q * self.scale @ k.mT).softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(b, n, c))


class PoseBlock(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn, self.drop_path = PoseAttention(dim, heads), nn.Identity()
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PoseEmbed(nn.Module):
    def __init__(self, dim, img_size):
        super().__init__()
        self.img_size = img_size
        self.proj = nn.Conv2d(3, dim, 16, 16, 2)

    def forward(self, x):
        x = self.proj(x)
        return x.flatten(2).transpose(1, 2), tuple(x.shape[-2:])


class PoseViT(nn.Module):
    """ViTPose's ViT in small: padded patch embedding, a learned table of positions, no class token."""

    def __init__(self, img_size=(128, 96), dim=32, depth=6, heads=2):
        super().__init__()
        self.patch_embed = PoseEmbed(dim, img_size)
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + img_size[0] * img_size[1] // 256, dim))
        self.blocks = nn.ModuleList(PoseBlock(dim, heads) for _ in range(depth))
        self.last_norm = nn.LayerNorm(dim)

    def train(self, mode=True):
        super().train(mode)  # returns nothing, as the original

    def forward(self, img):
        x, (rows, columns) = self.patch_embed(img)
        x = x + self.pos_embed[:, 1:] + self.pos_embed[:, :1]
        for block in self.blocks:
            x = block(x)
        return self.last_norm(x).transpose(1, 2).reshape(len(img), -1, rows, columns)


class Wrapped(nn.Module):
    """What SAM 3D Body has around a hub model."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, img):
        return self.encoder(img)


class Body(nn.Module):
    """SAM 3D Body's skeleton: a ViT, a decoder over its map, one branch for bodies and hands."""

    def __init__(self, pose=False):
        super().__init__()
        self.backbone = PoseViT((128, 96)) if pose else Wrapped(RotaryViT())
        self.pose = pose
        self.head = nn.Linear(32, 70 * 3)
        self.body_batch_idx, self.hand_batch_idx = [], []
        self.seen = []

    def forward_pose_branch(self, batch):
        img = batch["img"].flatten(0, 1)
        features = self.backbone(img[..., 16:-16] if self.pose else img)
        self.seen.append(features.shape)
        return self.head(features.mean((2, 3))).reshape(-1, 70, 3)


class Estimator:
    def __init__(self, pose=False):
        self.model = Body(pose)
        self.faces = None

    def process_one_image(self, img, bboxes=None):
        if not isinstance(img, torch.Tensor):  # an array [H, W, 3], as the original takes it
            img = F.interpolate(torch.from_numpy(img.copy()).permute(2, 0, 1)[None] / 255, (128, 128))[0]
        people = 1 if bboxes is None else len(bboxes)
        crops = img.expand(1, people, 3, 128, 128) * torch.arange(1, people + 1).reshape(1, people, 1, 1, 1)
        batch = {"img": crops, "bbox": torch.tensor([[30.0, 20, 80, 120]]).expand(1, people, 4)}
        batch["bbox_scale"] = torch.full((1, people, 2), 125.0)
        batch["mask"], batch["mask_score"] = torch.zeros(1, people, 1, 128, 128), torch.zeros(1, people)
        batch["mask"][..., 32:96, 48:80], batch["mask_score"][:, 0] = 1, 1
        model = self.model
        model.body_batch_idx, model.hand_batch_idx = list(range(people)), []
        with torch.no_grad():
            points = model.forward_pose_branch(batch)
            model.body_batch_idx, model.hand_batch_idx = [], list(range(people))
            model.forward_pose_branch(batch)
        return [{"pred_keypoints_3d": p.numpy()} for p in points]


def randomise(module, seed=0):
    """Weights that matter, layer scales near 0.3."""
    rng = torch.Generator().manual_seed(seed)
    for name, p in module.named_parameters():
        scale = name.endswith(("gamma", "lambda1")) or "gamma_" in name
        std = 0.2 if p.dim() < 2 else p.shape[-1] ** -0.5
        p.data = torch.randn(p.shape, generator=rng) * (0.05 if scale else std) + (0.3 if scale else 0)
    module.eval()
    return module
