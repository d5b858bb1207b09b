"""`tore-fast viz JOB`: pictures of what the methods do inside; one module viz_JOB.py per job."""

SUBCOMMANDS = {
    "tokens": "token regions of a TCFormer, stage by stage",
}
