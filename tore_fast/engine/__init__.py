"""`Engine`: any model of this package, prepared once for fast inference on one device.

In: a model or its name; out: an object that is called like the model. Ways: fold.py (batch norms into convolutions),
precision.py (compute type and float32 islands), staging.py (batches in fixed sizes, CUDA graphs, copies beside the
work). Used by pipelines/.
"""

from .engine import Engine, Pending, Report
from .fold import fold_batch_norms
from .precision import Choice, choose_precision
from .staging import bucket_sizes

__all__ = ["Choice", "Engine", "Pending", "Report", "bucket_sizes", "choose_precision", "fold_batch_norms"]
