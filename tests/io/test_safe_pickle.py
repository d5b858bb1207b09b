"""safe_pickle: reads arrays, sparse matrices and chumpy arrays; runs nothing else, whatever the file says."""

from __future__ import annotations

import pickle
import sys
import zipfile

import numpy as np
import pytest
import scipy.sparse as sp

from tore_fast.io.safe_pickle import read_npz, read_pickle

from ..body.fabricate import chumpy_array, fake_chumpy


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_reads_arrays_sparse_and_chumpy(tmp_path, protocol):
    rng = np.random.default_rng(0)
    a, big = rng.normal(size=(5, 3)), rng.normal(size=(4, 6))
    m = sp.random(7, 5, 0.4, format="csc", random_state=0)
    with fake_chumpy() as ch:
        select = ch.Select()
        select.__dict__.update(a=chumpy_array(ch, big), idxs=np.array([0, 1, 6, 7]), preferred_shape=(2, 2))
        data = {
            "a": a,
            "m": m,
            "r": m.tocsr(),
            "ch": chumpy_array(ch, a),
            "pick": select,
            "s": np.float32(2.5),
            "text": "lbs",
            "list": [chumpy_array(ch, a), 3],
            "empty": np.empty((0, 3)),
            "no bytes": b"",
            "object": np.array([m, a, None], dtype=object),
        }
        path = tmp_path / "x.pkl"
        path.write_bytes(pickle.dumps(data, protocol=protocol))
    assert "chumpy" not in sys.modules
    got = read_pickle(path)
    np.testing.assert_array_equal(got["a"], a)
    np.testing.assert_array_equal(got["ch"], a)
    np.testing.assert_array_equal(got["list"][0], a)
    np.testing.assert_array_equal(got["pick"], big.ravel()[[0, 1, 6, 7]].reshape(2, 2))
    assert sp.issparse(got["m"]) and got["r"].format == "csr"
    np.testing.assert_array_equal(got["m"].toarray(), m.toarray())
    np.testing.assert_array_equal(got["object"][0].toarray(), m.toarray())
    assert got["s"] == 2.5 and got["text"] == "lbs" and got["empty"].shape == (0, 3) and not got["no bytes"]


def test_reads_python2_pickle(tmp_path):
    """Protocol-0 bytes as Python 2 wrote them: old-style module names, byte strings, copy_reg._reconstructor."""
    with fake_chumpy() as ch:
        data = pickle.dumps({"x": chumpy_array(ch, np.arange(3.0))}, protocol=0)
    data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    assert b"copy_reg\n_reconstructor" in data and b"c__builtin__\nobject" in data
    path = tmp_path / "py2.pkl"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_pickle(path)["x"], [0, 1, 2])


class _Evil:
    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


def _attacks(marker):
    import functools
    import os

    return {
        "os.system": _Evil(os.system, f"touch {marker}"),
        "eval": _Evil(eval, f"open({str(marker)!r}, 'w')"),
        "open": _Evil(open, str(marker), "w"),
        "partial": _Evil(functools.partial, os.system, f"touch {marker}"),
        "numpy.load": _Evil(np.load, str(marker)),
        "numpy function": _Evil(np.fromfile, str(marker)),
        "getattr": _Evil(getattr, "text", "upper"),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", ["os.system", "eval", "open", "partial", "numpy.load", "numpy function", "getattr"])
def test_refuses_code(tmp_path, attack, protocol):
    marker, path = tmp_path / "marker", tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps({"v_template": _attacks(marker)[attack]}, protocol=protocol))
    with pytest.raises(pickle.UnpicklingError, match=r"evil.pkl: refused to load .*; only numpy arrays"):
        read_pickle(path)
    assert not marker.exists()


def test_the_attacks_would_work_elsewhere(tmp_path):
    """The check above can fail: the plain unpickler does run the same bytes."""
    marker = tmp_path / "marker"
    pickle.loads(pickle.dumps(_attacks(marker)["os.system"]))
    assert marker.exists()


@pytest.mark.parametrize(
    "data",
    [
        # builds something that is no payload
        b"ccopy_reg\n_reconstructor\n(cnumpy\nndarray\nc__builtin__\nobject\nNtR.",
        b"cnumpy\ndtype\n(Vos\ntR.",  # no such dtype
        b"cchumpy.ch\nCh\n)\x81.",  # chumpy without a state
        b"cchumpy.ch\nCh\n)\x81}b.",  # chumpy without x
        b"\x80\x02]q",  # cut off
        b"",
        b"\x8c\x08builtins\x8c\x04exec\x93\x8c\x01a\x85R.",  # STACK_GLOBAL
        b"Q.",  # persistent id
        b"\x82\x01.",  # extension registry
    ],
)
def test_refuses_forged_bytes(tmp_path, data):
    path = tmp_path / "forged.pkl"
    path.write_bytes(data)
    with pytest.raises(pickle.UnpicklingError, match="forged.pkl"):
        read_pickle(path)


def test_placeholders_do_not_leak_between_files(tmp_path):
    """A file that plants an attribute on the chumpy placeholder class must not reach the next file."""
    bad = tmp_path / "bad.pkl"
    bad.write_bytes(b"cchumpy.ch\nCh\n(N}Vkind\nVcsc_matrix\nstb}.")
    try:
        read_pickle(bad)
    except pickle.UnpicklingError:
        pass
    good = tmp_path / "good.pkl"
    with fake_chumpy() as ch:
        good.write_bytes(pickle.dumps({"x": chumpy_array(ch, np.arange(3.0))}, protocol=2))
    np.testing.assert_array_equal(read_pickle(good)["x"], [0, 1, 2])


def test_npz_with_objects(tmp_path):
    m = sp.random(4, 6, 0.5, format="csc", random_state=1)
    u = np.empty(2, object)
    u[:] = [m, m]
    path = tmp_path / "a.npz"
    np.savez(path, U=u, plain=np.arange(4), evil=np.array([_Evil(eval, "1")], dtype=object))
    got = read_npz(path, ("U", "plain"))  # other keys are not looked at
    np.testing.assert_array_equal(got["U"][1].toarray(), m.toarray())
    np.testing.assert_array_equal(got["plain"], np.arange(4))
    with pytest.raises(pickle.UnpicklingError, match=r"a.npz\[evil\]: refused to load \w+.eval"):
        read_npz(path)
    with pytest.raises(KeyError, match="no array 'D'; there is U, plain, evil"):
        read_npz(path, ("D",))


def test_npz_header_must_match(tmp_path):
    path, good = tmp_path / "b.npz", tmp_path / "c.npz"
    u = np.empty(1, object)
    u[0] = np.arange(3)
    np.savez(good, U=u)
    data = zipfile.ZipFile(good).read("U.npy")
    with zipfile.ZipFile(path, "w") as z:
        z.writestr("U.npy", data[: data.index(b"\x80")] + pickle.dumps({"not": "an array"}, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match=r"promises an object array \(1,\)"):
        read_npz(path)


class _Call:
    """Pickled as a call of a named function, which need not be what the name says."""

    def __init__(self, function, *args, state=None):
        self.function, self.args, self.state = function, args, state

    def __reduce__(self):
        return (self.function, self.args) if self.state is None else (self.function, self.args, self.state)


def _hostile():
    reconstruct = np.arange(2).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    plain, objects = np.dtype("f8"), np.dtype("O")
    nested: list = []
    for _ in range(40):
        nested = [nested, nested]
    deep: list = []
    for _ in range(200):
        deep = [deep]
    base = (np.ndarray, (0,), b"b")
    return {
        "objects over bytes": (_Call(np.ndarray, (2,), "O", b"x" * 16), "refused to load numpy.ndarray"),
        "object state of bytes": (
            _Call(reconstruct, *base, state=(1, (2,), objects, False, b"x" * 16)),
            "object array",
        ),
        "object scalar": (_Call(scalar, objects, b"x" * 8), "an array"),
        "long scalar": (_Call(scalar, plain, b"x" * 800), "with 800 bytes"),
        "short array": (_Call(reconstruct, *base, state=(1, (100,), plain, False, b"x" * 8)), "with 8 bytes"),
        "negative shape": (_Call(reconstruct, *base, state=(1, (-1,), plain, False, b"x" * 8)), "tuple of sizes"),
        "huge shape": (_Call(reconstruct, *base, state=(1, (1 << 62, 1 << 62), plain, False, b"")), "tuple of sizes"),
        "fields": (np.zeros(2, [("a", "f4"), ("b", "O")]), "plain numbers and texts"),
        "nested lists": (deep, "too deeply"),
        "shared lists": (nested, ""),
    }


@pytest.mark.parametrize("case", _hostile())
def test_arrays_made_to_hurt(tmp_path, case):
    value, said = _hostile()[case]
    path = tmp_path / "hurt.pkl"
    path.write_bytes(pickle.dumps({"v": value}, protocol=2))
    if not said:  # 2^40 leaves in 300 bytes: read as they are shared
        assert len(read_pickle(path)["v"]) == 2
        return
    with pytest.raises(pickle.UnpicklingError, match="hurt.pkl: ") as e:
        read_pickle(path)
    assert said in str(e.value), e.value


@pytest.mark.parametrize(
    "change",
    [
        {"indices": np.array([0, 1, 2, 2**30])},
        {"indices": np.array([0, 1, 2, -1])},
        {"indptr": np.array([0, 1, 2, 3, 2**28])},
        {"indptr": np.array([0, 3, 2, 3, 4])},
        {"indptr": np.array([0, 4])},
        {"data": np.ones(2)},
        {"indices": np.array([0.0, 1, 2, 3])},
        {"_shape": (4, -4)},
        {"_shape": (4, 3)},
        {"_shape": (1 << 40, 4)},
    ],
)
@pytest.mark.parametrize("kind", ["csc", "csr"])
def test_sparse_structures_are_checked(tmp_path, kind, change):
    matrix = getattr(sp, f"{kind}_matrix")(np.eye(4))
    matrix.__dict__.update({k: v for k, v in change.items()})
    path = tmp_path / "sparse.pkl"
    path.write_bytes(pickle.dumps({"J_regressor": matrix}, protocol=2))
    with pytest.raises(pickle.UnpicklingError, match="sparse.pkl: .*sparse matrix|sparse.pkl: an array"):
        read_pickle(path)


def test_the_name_of_a_class_is_one_line(tmp_path):
    name = b"nti\narray\x1b"
    (tmp_path / "a.pkl").write_bytes(b"\x80\x04\x8c" + bytes([len(name)]) + name + b"\x8c\x01x\x93.")
    with pytest.raises(ValueError) as e:
        read_pickle(tmp_path / "a.pkl")
    assert str(e.value).isprintable() and "array" in str(e.value)
