"""Golden cases: how they are read (`case.py`), and one module of runners per model family."""
