"""2D key points of any detector -> clips in the H36M joint order.

In: JSON, npz, npy, csv or a folder (orders.py lists the joint orders). Out: `KeypointClip`. Next: pipelines/lift.py.
"""

from .clip import KeypointClip, fill_missing, read_keypoints, read_people
from .found import Found, SeenPerson, clean
from .orders import COUNTS, ORDERS, KeypointError, order_by_place, order_of_names, to_h36m

__all__ = [
    "COUNTS",
    "ORDERS",
    "Found",
    "KeypointClip",
    "KeypointError",
    "SeenPerson",
    "clean",
    "fill_missing",
    "order_by_place",
    "order_of_names",
    "read_keypoints",
    "read_people",
    "to_h36m",
]
