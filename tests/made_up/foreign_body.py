"""What SAM 3D Body has around its ViT, in small: prompts, ray features, decoders that ask a body model every layer.

Attribute names, shapes and arithmetic of the published interface.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from . import foreign_vit

JOINTS, DIM, VERTICES = 70, 32, 40


class PointEncoding(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("matrix", torch.randn(2, DIM // 2))

    def _pe_encoding(self, coords):
        angle = 2 * math.pi * ((2 * coords - 1) @ self.matrix)
        return torch.cat((angle.sin(), angle.cos()), -1)


class Prompts(nn.Module):
    """One masked write per joint."""

    def __init__(self):
        super().__init__()
        self.pe_layer = PointEncoding()
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, DIM) for _ in range(JOINTS))
        self.not_a_point_embed, self.invalid_point_embed = nn.Embedding(1, DIM), nn.Embedding(1, DIM)

    def _embed_keypoints(self, points, labels):
        assert points.min() >= 0 and points.max() <= 1
        out = self.pe_layer._pe_encoding(points.float())
        for label, embed in ((-2, self.invalid_point_embed), (-1, self.not_a_point_embed)):
            out[labels == label] = 0.0
            out[labels == label] += embed.weight
        for i, embed in enumerate(self.point_embeddings):
            out[labels == i] += embed.weight
        return out, labels > -2

    def forward(self, keypoints):
        return self._embed_keypoints(keypoints[..., :2], keypoints[..., 2])


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_bands, self.max_resolution = 4, [16] * 3

    def forward(self, pos):
        bands = torch.stack([torch.linspace(1.0, r / 2, self.num_bands) for r in self.max_resolution])
        angle = torch.stack([p[:, :, None] * bands[None] for p in pos]).reshape(*pos.shape[:2], -1)
        return torch.cat((pos, torch.sin(math.pi * angle), torch.cos(math.pi * angle)), -1)


class Rays(nn.Module):
    def __init__(self):
        super().__init__()
        self.camera, self.mix = Fourier(), nn.Linear(27, DIM)

    def forward(self, x, rays):
        return x + self.mix(self.camera(rays))


class BodyModel(nn.Module):
    """Skinned vertices and skeleton; correctives are a small addition with a cost of their own."""

    def __init__(self):
        super().__init__()
        self.shape, self.fix = nn.Linear(8, VERTICES * 3), nn.Linear(8, VERTICES * 3)
        self.switches: list[bool] = []

    def forward(self, shape: Tensor, params: Tensor, expr: Tensor | None = None, apply_correctives: bool = True):
        self.switches.append(apply_correctives)
        out = self.shape(params)
        if apply_correctives:
            out = out + 0.01 * self.fix(params).tanh()
        return out.unflatten(-1, (VERTICES, 3)), shape


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj, self.mhr = nn.Linear(DIM, 8), BodyModel()
        self.keypoint_mapping = nn.Parameter(torch.randn(308, VERTICES) / 8, requires_grad=False)

    def forward(self, token):
        params = self.proj(token)
        skin, _ = self.mhr(params, params, None)
        points = (self.keypoint_mapping @ skin.transpose(0, 1).flatten(1)).unflatten(-1, (-1, 3)).transpose(0, 1)
        return {"pred_keypoints_3d": points[:, :70], "pred_vertices": skin}


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(DIM, DIM)

    def forward(self, token, context):
        return token + self.mix(token + context.mean(1)), context


class Decoder(nn.Module):
    def __init__(self, depth=3):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(depth))
        self.extra = 0

    def forward(self, token, context, predict):
        for layer in self.layers:
            token, context = layer(token, context)
            out = predict(token)
            token = token + 0.1 * out["pred_keypoints_3d"].mean((1, 2), keepdim=True)[..., 0]
        for _ in range(self.extra):
            predict(token)
        return out


class Body(foreign_vit.Body):
    def __init__(self):
        super().__init__()
        self.prompt_encoder = Prompts()
        self.ray_cond_emb, self.ray_cond_emb_hand = Rays(), Rays()
        self.head_pose, self.head_pose_hand = Head(), Head()
        self.decoder, self.decoder_hand = Decoder(), Decoder()

    def forward_decoder(self, features, batch):
        prompt, _ = self.prompt_encoder(batch["prompt"])
        features = self.ray_cond_emb(features, batch["rays"])
        return self.decoder(prompt.mean(1), features, self.head_pose)

    def forward_decoder_hand(self, features, batch):
        return self.decoder_hand(features.mean(1), self.ray_cond_emb_hand(features, batch["rays"]), self.head_pose_hand)

    def forward_pose_branch(self, batch):
        img = batch["img"].flatten(0, 1)
        features = self.backbone(img).flatten(2).transpose(1, 2)
        if self.hand_batch_idx:
            return self.forward_decoder_hand(features, batch)
        return self.forward_decoder(features, batch)


class Camera:
    def __init__(self):
        self.calls = 0

    def get_cam_intrinsics(self, image):
        self.calls += 1
        return torch.eye(3) * (500 + self.calls)


class Estimator:
    """Two people a frame; bodies, then hands, then the body model once more."""

    def __init__(self):
        self.model, self.fov_estimator, self.faces = Body(), Camera(), None
        self.shift = 0.0

    @torch.no_grad()
    def process_one_image(self, img, bboxes=None):
        boxes = torch.tensor([[20.0, 10, 60, 110], [80.0, 30, 120, 130]])
        rng = torch.Generator().manual_seed(0)
        people, model = len(boxes), self.model
        centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, 125.0
        warp = torch.zeros(people, 2, 3)
        warp[:, 0, 0] = warp[:, 1, 1] = 128 / side
        warp[:, :, 2] = 64 - 128 / side * centre
        batch = {
            "img": img.expand(1, people, 3, 128, 128),
            "bbox": boxes[None],
            "bbox_scale": torch.full((1, people, 2), side),
            "affine_trans": warp[None],
            "ori_img_size": torch.tensor([160.0, 140]).expand(1, people, 2),
            "prompt": torch.cat(
                (torch.rand(people, 3, 2, generator=rng), torch.tensor([[-2.0], [-1], [41]]).expand(2, 3, 1)), -1
            ),
            "rays": torch.rand(people, 64, 3, generator=rng),
        }
        focal = self.fov_estimator.get_cam_intrinsics(img)[0, 0]
        model.body_batch_idx, model.hand_batch_idx = [0, 1], []
        body = model.forward_pose_branch(batch)
        model.body_batch_idx, model.hand_batch_idx = [], [0, 1]
        hand = model.forward_pose_branch(batch)
        model.head_pose.mhr(*[body["pred_vertices"][:, :8, 0]] * 2, None)  # the final one, outside of the decoders
        points = body["pred_keypoints_3d"] + 0.1 * hand["pred_keypoints_3d"]
        # vertices that project into the left half of every box
        low, high = boxes[:, :2], torch.stack(((boxes[:, 0] + boxes[:, 2]) / 2, boxes[:, 3]), 1)
        place = low[:, None] + (high - low)[:, None] * torch.rand(people, VERTICES, 2, generator=rng)
        flat = (place - torch.tensor([80.0, 70])) / focal * 5
        skin = torch.cat((flat, torch.zeros(people, VERTICES, 1)), -1)
        return [
            {
                "bbox": boxes[i].numpy(),
                "pred_keypoints_3d": points[i].numpy(),
                "pred_keypoints_2d": points[i, :, :2].numpy() * 100,
                "pred_vertices": skin[i].numpy(),
                "pred_cam_t": torch.tensor([0.0, 0, 5]).numpy(),
                "focal_length": float(focal),
            }
            for i in range(people)
        ]
