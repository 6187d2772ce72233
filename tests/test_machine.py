"""What is known of the machine, and what is done about it."""

import os
import subprocess
import sys

import numpy as np
import pytest

from mamlnp.backend import machine


class Library:
    """What threadpoolctl tells of a loaded library."""

    def __init__(self, filepath, user_api="blas", **facts):
        self.filepath, self.user_api, self.facts = filepath, user_api, facts

    def info(self):
        return {"internal_api": "mkl", "version": "1", "num_threads": 4, **self.facts}


def loaded(monkeypatch, *libraries):
    class Controller:
        lib_controllers = libraries

    monkeypatch.setattr(machine, "_controller", Controller)
    monkeypatch.setattr(machine, "_functions", lambda path: ({}, False))


def test_the_blas_is_numpys_and_its_products_are_found():
    found = machine.blas()
    built_with = np.show_config(mode="dicts")["Build Dependencies"]["blas"]["name"]
    if "openblas" in built_with:
        assert found.version.startswith("openblas") and found.architecture
        assert set(found.functions) == {"f4", "f8"} and all(found.functions.values())


def test_other_packages_bring_libraries_too(monkeypatch):
    numpys = Library("/lib/numpy.libs/libblas.so", internal_api="openblas", version="0.3")
    others = [Library("/lib/numpy.libs/libgomp.so", "openmp"), Library("/lib/torch/libblas.so")]
    loaded(monkeypatch, *others, numpys)
    assert machine.blas().version == "openblas 0.3"
    loaded(monkeypatch)
    assert machine.blas().version is None
    assert machine.better_kernels() is None


def test_products_run_on_one_thread_while_it_lasts():
    before = machine.blas().threads
    with machine.one_blas_thread():
        assert machine.blas().threads in (1, None)
        with machine.one_blas_thread():
            assert machine.blas().threads in (1, None)
    assert machine.blas().threads == before


@pytest.mark.parametrize(
    ("architecture", "flags", "user", "better"),
    [
        ("Haswell", "avx2 avx512f avx512cd avx512bw avx512dq avx512vl", None, "SkylakeX"),
        ("Haswell", "avx2 avx512f avx512cd avx512bw avx512dq avx512vl", "Haswell", None),
        ("SkylakeX", "avx2 avx512f avx512cd avx512bw avx512dq avx512vl", None, None),
        ("Haswell", "avx2 avx512f", None, None),
        ("Haswell", "avx2", None, None),
    ],
)
def test_better_kernels_are_asked_for_where_the_processor_has_them(
    architecture, flags, user, better, monkeypatch, tmp_path
):
    facts = {"internal_api": "openblas", "architecture": architecture}
    loaded(monkeypatch, Library("/lib/numpy.libs/libblas.so", **facts))
    (tmp_path / "cpuinfo").write_text(f"flags : fpu {flags} sse\n")
    monkeypatch.setattr(machine, "Path", lambda _: tmp_path / "cpuinfo")
    monkeypatch.delenv(machine.CORETYPE, raising=False)
    if user:
        monkeypatch.setenv(machine.CORETYPE, user)
    assert machine.better_kernels() == better
    machine.advise.cache_clear()
    if better:
        with pytest.warns(UserWarning, match="OPENBLAS_CORETYPE=SkylakeX"):
            machine.advise()
    machine.advise()  # once is enough


def test_a_command_starts_again_with_them_once():
    program = """
import os, sys
from mamlnp.backend import machine
machine.better_kernels = lambda: None if machine.CORETYPE in os.environ else "SkylakeX"
machine.restart_with_better_kernels()
print(os.environ[machine.CORETYPE], *sys.argv[1:])
"""
    environment = {k: v for k, v in os.environ.items() if k != machine.CORETYPE}
    done = subprocess.run(
        [sys.executable, "-c", program, "train", "a b"],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "SkylakeX train a b\n"


def test_the_number_of_cores_is_what_the_process_may_use():
    assert 1 <= machine.cores() <= os.cpu_count()
