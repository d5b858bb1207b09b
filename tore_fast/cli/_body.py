"""Which body or hand the tasks mesh and smpl mean: the free one, or the user's SMPL or MANO file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GENDER_FILES = {  # names without suffix, the current download's last
    "male": ("SMPL_MALE", "basicModel_m_lbs_10_207_0_v1.0.0", "basicmodel_m_lbs_10_207_0_v1.1.0"),
    "female": ("SMPL_FEMALE", "basicModel_f_lbs_10_207_0_v1.0.0", "basicmodel_f_lbs_10_207_0_v1.1.0"),
}


def protocol_of(
    hand: bool, body: str = "auto", mesh_data: str | None = None, truth: str = "auto", gendered: bool = False
) -> Any:
    """Evaluation protocol with its body (`.body`).

    Args:
        body: "auto" (free body or hand), or a file or folder with the SMPL or MANO model.
        mesh_data: folder of their topology files.
        truth, gendered: see eval.protocols.BodyProtocol.
    """
    from ..body import load_body
    from ..eval.protocols import BodyProtocol, HandProtocol

    if hand:
        return HandProtocol(load_body("free_hand") if body == "auto" else load_body("mano", body, topology=mesh_data))
    if body == "auto":
        if gendered:
            raise ValueError("--gendered needs --body: the folder with SMPL_NEUTRAL, SMPL_MALE and SMPL_FEMALE")
        return BodyProtocol({"neutral": load_body("free")}, truth)
    topology = smpl_topology(mesh_data)
    bodies = {"neutral": load_body("smpl", body, topology=topology)}
    if gendered:
        folder = Path(body) if Path(body).is_dir() else Path(body).parent
        for gender, stems in GENDER_FILES.items():
            stem, names = stems[0], [f"{stem}{s}" for stem in stems for s in (".pkl", ".npz")]
            file = next((folder / n for n in names if (folder / n).is_file()), None)
            if file is None:
                raise FileNotFoundError(
                    f"--gendered: no {stem}.pkl or .npz in {folder}; SMPL is licensed for research: register "
                    "at the SMPL page of MPI for Intelligent Systems"
                )
            bodies[gender] = load_body("smpl", file, topology=topology)
    return BodyProtocol(bodies, truth, gendered)


def smpl_topology(mesh_data: str | None) -> Any:
    """SMPL's public topology files: the H36M regressor, which the model file lacks, is among them."""
    from ..body import load_topology
    from ..body.official import mesh_data_folder

    folder = mesh_data_folder(mesh_data)
    if not folder:
        raise ValueError(
            "--body with an SMPL file needs --mesh-data: the folder with J_regressor_h36m_correct.npy and mesh files"
        )
    return load_topology("smpl", folder)
