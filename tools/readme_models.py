"""Prints the model table of the README: parameters and multiply-adds, ours beside the paper's (the counts of `tore-fast list`)."""

from __future__ import annotations

from tore_fast.cli.list import rows

NAMES = (
    "fastmetro_s_r50", "fastmetro_l_r50", "fastmetro_l_h64", "fastmetro_tore_l_r50", "fastmetro_tore_l_h64",
    "fastmetro_tore_l_eb0", "metro_r50", "metro_tore_r50", "metro_tore_h64", "graphormer_h64", "tcformer_light",
    "tcformer_base", "tcformer_large", "mixste_243", "hot_mixste_243", "motionbert_lite_243", "hot_motionbert_243",
    "mhformer_351", "tpc_mhformer_351", "hmr2_vith", "fasthmr_hmr2", "camerahmr_vith", "fasthmr_camerahmr", "tore_default",
)  # fmt: skip


def main() -> None:
    print("| model | parameters M | paper | GMACs | paper | paper's table |\n|---|---|---|---|---|---|")
    for name in NAMES:
        (row,) = rows(name)
        paper = row["paper"] or {}
        cells = [row["params_m"], paper.get("params_m"), row["gmacs"], paper.get("gmacs")]
        text = ["-" if v is None else f"{v:.2f}" for v in cells]
        source = (paper.get("source") or "").split(";")[0] or ("ours" if name == "tore_default" else "")
        print(f"| `{name}` | {text[0]} | {text[1]} | {text[2]} | {text[3]} | {source} |")


if __name__ == "__main__":
    main()
