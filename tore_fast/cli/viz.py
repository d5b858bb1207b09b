"""`tore-fast viz JOB`: images of what the methods do inside; one module viz_JOB.py per job."""

SUBCOMMANDS = {
    "tokens": "token regions of a TCFormer, stage by stage",
    "attention": "attention maps of an image-to-mesh model, on image and mesh",
    "noise": "meshes of an image-to-mesh model under noise on its shape regressor, side by side",
    "frames": "frames that a video pose model keeps, their groups, its poses beside the truth",
    "stages": "the same clip after every stage of FastHMR, side by side",
    "keypoints": "key points of a heat-map model, drawn on the photograph",
}
