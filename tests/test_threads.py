import os
import subprocess
import sys

import pytest

from tore_fast import _threads


def state_of(code: str, **env: str) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "KMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **env}, check=True
    )
    return done.stdout.strip()


def test_the_policy_is_passive_and_torch_is_not_loaded():
    code = "import sys, os, tore_fast; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    assert state_of(code) == "passive False"


def test_a_set_variable_wins():
    code = "import os, tore_fast; print(os.environ.get('OMP_WAIT_POLICY'), tore_fast._threads.state)"
    assert state_of(code, OMP_WAIT_POLICY="active") == "active as set: OMP_WAIT_POLICY=active"
    assert state_of(code, GOMP_SPINCOUNT="5") == "None as set: GOMP_SPINCOUNT=5"


def test_too_late_is_said():
    code = "import sys, os; sys.modules['torch'] = None; from tore_fast import _threads; print(_threads.state)"
    assert state_of(code).startswith("too late")


@pytest.fixture
def group(tmp_path):
    def make(own: str, **files: str):
        (tmp_path / "self").write_text(own)
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("DOT", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return _threads.cgroup_quota(tmp_path, tmp_path / "self")

    return make


def test_version_2_takes_the_tightest_group(group):
    assert group("0::/a/b\n", a__cpuDOTmax="150000 100000\n", a__b__cpuDOTmax="max 100000\n") == 1.5


def test_version_1(group):
    own = "4:cpu,cpuacct:/box\n0::/\n"
    assert group(own, cpu__box__cpuDOTcfs_quota_us="50000\n", cpu__box__cpuDOTcfs_period_us="100000\n") == 0.5


def test_no_limit(group):
    assert group("0::/\n", cpuDOTmax="max 100000\n") is None
    assert group("4:cpu:/\n", cpu__cpuDOTcfs_quota_us="-1\n", cpu__cpuDOTcfs_period_us="100000\n") is None
    assert _threads.cgroup_quota("/none", "/none") is None


def test_a_quota_rounds_up_and_never_gives_more_than_the_affinity(monkeypatch):
    monkeypatch.setattr(_threads, "affinity", lambda: 4)
    for quota, want in ((None, 4), (0.2, 1), (1.5, 2), (9.0, 4)):
        monkeypatch.setattr(_threads, "cgroup_quota", lambda q=quota: q)
        assert _threads.available_cpus() == want
