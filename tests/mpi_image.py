"""An image that runs MPI programs: what this machine's Open MPI and MPICH need, copied into a tree.

Much smaller and faster than a distribution in an image, and the versions outside and inside agree.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tests.parts import find, missing, require, run

# Passes a block of integers around a ring of ranks, each of which adds one to every integer, and
# sums the ranks; the first rank checks both.
RING = r"""
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
  int rank, size, sum, i, count = atoi(argv[1]), rounds = argc > 2 ? atoi(argv[2]) : 1;
  int *block = malloc(count * sizeof(int));
  MPI_Init(&argc, &argv);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  MPI_Allreduce(&rank, &sum, 1, MPI_INT, MPI_SUM, MPI_COMM_WORLD);
  for (; rounds > 0; rounds--) {
    if (rank == 0) for (i = 0; i < count; i++) block[i] = i;
    else MPI_Recv(block, count, MPI_INT, rank - 1, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (i = 0; i < count; i++) block[i] += 1;
    MPI_Send(block, count, MPI_INT, (rank + 1) % size, 7, MPI_COMM_WORLD);
    if (rank != 0) continue;
    MPI_Recv(block, count, MPI_INT, size - 1, 7, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    for (i = 0; i < count; i++)
      if (block[i] != i + size) { printf("wrong at %d\n", i); MPI_Abort(MPI_COMM_WORLD, 3); }
  }
  if (rank == 0) printf("%d ranks, sum %d, %d words\n", size, sum, count);
  MPI_Finalize();
  return 0;
}
"""

# MPICH's ABI, which it has promised not to change; its headers come with a Fortran compiler.
MPICH_HEADER = """
typedef int MPI_Comm, MPI_Datatype, MPI_Op;
#define MPI_COMM_WORLD ((MPI_Comm)0x44000000)
#define MPI_INT ((MPI_Datatype)0x4c000405)
#define MPI_SUM ((MPI_Op)0x58000003)
#define MPI_STATUS_IGNORE ((void *)1)
int MPI_Init(int *, char ***), MPI_Finalize(void), MPI_Abort(MPI_Comm, int);
int MPI_Comm_rank(MPI_Comm, int *), MPI_Comm_size(MPI_Comm, int *);
int MPI_Allreduce(const void *, void *, int, MPI_Datatype, MPI_Op, MPI_Comm);
int MPI_Send(const void *, int, MPI_Datatype, int, int, MPI_Comm);
int MPI_Recv(void *, int, MPI_Datatype, int, int, MPI_Comm, void *);
"""

# Components for fabrics bring large libraries along and have nothing to drive here.
_FABRICS = ("ofi", "ucx", "openib", "verbs", "psm", "uct", "java", "usnic", "portals", "monitoring")

# Open MPI 5 complains of each rank when there is but a loopback interface.
NO_TCP = "OMPI_MCA_btl=^tcp"
_STARTERS = ("orted", "prte", "prted", "prterun")  # of Open MPI 4; of 5


def add_mpi(image: Path) -> None:
    """Add Open MPI, MPICH's library, /ring and /ring-mpich to an image of busybox.

    `ring COUNT [ROUNDS]` prints `4 ranks, sum 6, COUNT words`.
    """
    mpirun, mpicc = require("mpirun"), require("mpicc")
    starters = [path for name in _STARTERS if (path := find(name)) is not None]
    for name in ("lib", "lib64"):
        (image / "usr" / name).mkdir(parents=True, exist_ok=True)
        if not (image / name).exists():
            (image / name).symlink_to(f"usr/{name}")
    openmpi = Path(run([mpicc, "--showme:libdirs"]).stdout.decode().split()[0])
    libraries = openmpi.parents[1]  # /usr/lib/x86_64-linux-gnu
    _compile(image, mpicc, libraries)
    components = [
        *(p for p in openmpi.glob("openmpi?*/*.so") if not any(f in p.name for f in _FABRICS)),
        *libraries.glob("pmix2/lib/pmix/*.so"),
    ]
    programs = [mpirun, *starters, image / "ring", image / "ring-mpich"]
    _copy(image, [mpirun, *starters, *components, *_libraries([*programs, *components])])
    shares = ("/usr/share/openmpi", "/usr/share/prte", "/etc/openmpi", f"{libraries}/pmix2/share")
    for folder in filter(os.path.isdir, shares):
        shutil.copytree(folder, image / folder[1:], dirs_exist_ok=True)


def isolated() -> str:
    """Return assignments that keep `mpirun` from asking a batch system to start ranks.

    PRRTE 3.0.8, of Open MPI 5, crashes over what Grid Engine says of hosts.
    """
    return "OMPI_MCA_plm=isolated" if find("orted") else "PRTE_MCA_plm=ssh PRTE_MCA_ras=^gridengine"


def _compile(image: Path, mpicc: Path, libraries: Path) -> None:
    mpich = libraries / "libmpich.so.12"
    if not mpich.exists():
        missing(mpich.name)
    (image / "ring.c").write_text(RING, "utf-8")
    run([mpicc, "-O1", "-o", image / "ring", image / "ring.c"])
    (image / "mpi.h").write_text(MPICH_HEADER, "utf-8")
    run(["gcc", "-O1", "-I", image, "-o", image / "ring-mpich", image / "ring.c", mpich])


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """Return the libraries programs load, as `ldd` finds them, and the loader itself."""
    listed = run(["ldd", *programs]).stdout.decode().split()
    return {Path(word) for word in listed if word.startswith("/") and not word.endswith(":")}


def _copy(image: Path, files: Iterable[Path]) -> None:
    """Copy files to their places, and the names links of them lead to as well."""
    for file in files:
        for name in {file, file.resolve()}:
            target = image / str(name)[1:]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(name, target)
