"""`tore-fast viz JOB`: images of what the methods do inside; one module viz_JOB.py per job."""

SUBCOMMANDS = {
    "tokens": "token regions of a TCFormer, stage by stage",
    "attention": "attention maps of an image-to-mesh model, on image and mesh",
}
