"""`tore-fast train JOB`: one module train_JOB.py per job, all on train/loop.py."""

SUBCOMMANDS = {
    "mesh": "image-to-mesh models on synthetic images of the free body (the built-in default's recipe)",
    "hot": "video 2D-to-3D pose models (MixSTE, MotionBERT, MHFormer, HoT, TPC) on motion capture",
    "fasthmr": "FastHMR: a host on synthetic crops, the motion prior (stage 1), the one-step denoiser (stage 2)",
    "fasthmr_clips": "motion files rendered as clips, with a host's features: the data of FastHMR's stage 2",
    "classify": "image classifiers (TCFormer) on folders of class folders",
    "keypoints": "heat-map models (TCFormer, PPT) on COCO-WholeBody, WFLW or synthetic people",
    "smpl": "body-parameter regression (TCFormer + HMR head) on synthetic images of the free body",
}
