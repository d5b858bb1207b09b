"""Benchmarks as a product: `tore-fast bench ops`, or `python -m benchmarks.run ops` in a checkout.

registry.py finds the cases of ops/<stem>.py and models/<family>.py; harness.py checks and times one case; roofline.py
measures the machine's ceilings; report.py turns the JSON into Markdown and PNG. Installed as tore_fast.benchmarks.
"""
