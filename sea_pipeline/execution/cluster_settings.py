"""Define the settings of everything that can do shards, from this process to Slurm jobs.

`dask_clusters` starts what they describe.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import yaml
from pydantic import Field, TypeAdapter, ValidationError, ValidationInfo, field_validator

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.renamed import renamed
from sea_pipeline.core.settings import Count, Options, Positive, Settings, complaint
from sea_pipeline.core.yaml_keys import UniqueKeyLoader
from sea_pipeline.storage.paths import data_folder

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, __name__, {"Crew": "WorkerSettings", "Existing": "ExistingCluster"})

# Options of the commands that work shard by shard, as types of their settings' fields.
ShardSize = Annotated[
    int,
    Field(
        ge=1, le=65_536, description="The number of images per shard. A kill loses only the work on unfinished shards."
    ),
]
Extend = Annotated[bool, Field(description="Add the images that are new to a folder that was begun without them.")]
MaxBad = Annotated[
    float,
    Field(
        ge=0,
        le=1,
        description="Stop if more than this share of all images is bad, or if a server refuses more than this share of "
        "a shard. 0 allows none, any other value at least one.",
    ),
]
RetryBad = Annotated[bool, Field(description="Try bad images again, also in a finished folder.")]


class _Cluster(Options):
    start_timeout: Annotated[float, Field(gt=0)] = 120
    """The seconds without any worker after which the run ends. For a queue, this is how long it may take to start."""


class LocalCluster(_Cluster):
    """Processes of this machine that divide its cores and memory evenly; each does one shard at a time."""

    kind: Literal["local"] = "local"
    workers: Positive = 2
    gpus: tuple[str, ...] = ()
    """The GPUs, one for each worker, named as in CUDA_VISIBLE_DEVICES. Empty for workers without a GPU."""
    memory_limit: str = "auto"
    """The memory of a worker, such as 16GB; auto is its share of the machine's. A worker that uses 95 % is killed."""

    @field_validator("gpus")
    @classmethod
    def _one_for_each_worker(cls, gpus: tuple[str, ...], other: ValidationInfo) -> tuple[str, ...]:
        if gpus and len(gpus) != (workers := other.data.get("workers", len(gpus))):
            raise ValueError(f"expected one for each of {workers} workers, found {len(gpus)}")
        return gpus


class CudaCluster(_Cluster):
    """One process for each GPU of this machine."""

    kind: Literal["cuda"] = "cuda"
    gpus: tuple[str, ...] | None = None
    """The GPUs, named as in CUDA_VISIBLE_DEVICES. None means all that are visible."""
    memory_limit: str = "auto"


class SlurmCluster(_Cluster):
    """Slurm jobs with one worker each. While there is work, a new job replaces one that has ended."""

    kind: Literal["slurm"] = "slurm"
    jobs: Positive
    gpus: Annotated[int, Field(ge=0, le=1)] = 1
    """The number of GPUs per job."""
    cores: Positive
    memory: str
    """The memory of a job, such as 64GB."""
    walltime: Annotated[Count, Field(ge=20)]
    """The time limit of a job in minutes. Workers end one to nine minutes earlier, so that not all end at once."""
    partition: str | None = None
    account: str | None = None
    interface: str | None = None
    """The network interface over which jobs reach this process, such as ib0."""
    directives: tuple[str, ...] = ()
    """More `#SBATCH` lines, such as --constraint=a100."""
    skip_directives: tuple[str, ...] = ()
    """`#SBATCH` lines to leave out, such as --mem, if a site refuses them."""
    prologue: tuple[str, ...] = ()
    """Shell lines that run before the worker starts, such as module load cuda."""
    start_timeout: Annotated[float, Field(gt=0)] = 24 * 3600


class ExistingCluster(_Cluster):
    """The workers of a scheduler that already runs, and that keeps running."""

    kind: Literal["existing"] = "existing"
    address: str
    start_timeout: Annotated[float, Field(gt=0)] = 60


Cluster = LocalCluster | CudaCluster | SlurmCluster | ExistingCluster
_InFiles = LocalCluster | CudaCluster | SlurmCluster
_FILE: TypeAdapter[_InFiles] = TypeAdapter(Annotated[_InFiles, Field(discriminator="kind")])


_OVER_SSH = (
    "; on hosts that you reach by ssh, run `dask scheduler --scheduler-file FILE` on one and `dask worker "
    "--scheduler-file FILE --nthreads 1` on each, and give --scheduler FILE"
)


class WorkerSettings(Settings):
    """The options that choose which processes do the shards. By default this process does all of them."""

    workers: Positive | None = None
    """The number of worker processes on this machine (needs the extra dask). With GPUs, each worker has its own GPU.
    Default: this process does all the work."""
    scheduler: str | None = None
    """Use the workers of a running dask scheduler: tcp://HOST:PORT, or the scheduler's file."""
    cluster: str | None = None
    """Start the workers that a YAML file describes: local, cuda, slurm, or the path of your own file."""
    shard_range: str | None = None
    """Do only the I-th of N parts of the shards, given as I/N, for job arrays. The run that ends last finishes the
    folder. Default: all shards."""
    shard_timeout: Annotated[float, Field(gt=0)] | None = None
    """The seconds that a worker may take for a shard. After that the worker is restarted, and the shard is tried once
    more. Default: no limit."""
    dashboard: bool = True
    """Serve dask's web page that shows the workers, on this machine."""

    @classmethod
    def of(cls, **values: object) -> Self:
        """Check the values as `Settings.of` does, and refuse options that contradict each other."""
        crew = super().of(**values)
        asked = [f"--{name}" for name in ("workers", "scheduler", "cluster") if getattr(crew, name) is not None]
        if len(asked) > 1:
            raise UserError(f"{' and '.join(asked)}: each says where workers come from; give one of them")
        if crew.shard_timeout is not None and not asked:
            raise UserError("--shard-timeout: goes with --workers, --scheduler or --cluster")
        if crew.shard_range is not None:
            match = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", crew.shard_range)
            if not match or int(match[1]) > int(match[2]):
                raise UserError(f"--shard-range {crew.shard_range}: expected I/N with I from 1 to N, such as 1/8")
        return crew

    @property
    def in_process(self) -> bool:
        """Tell whether this process does the work itself, without dask."""
        return self.workers is None and self.scheduler is None and self.cluster is None

    def shards(self, count: int) -> range | None:
        """Return the shards of `count` that this run does, or None for all."""
        if self.shard_range is None:
            return None
        part, parts = map(int, self.shard_range.split("/"))
        return range((part - 1) * count // parts, part * count // parts)

    def cluster_for(self, device: str) -> Cluster:
        """Return the cluster to start or to connect to, for work on `device`.

        `auto` is a GPU if there is one.

        Raises:
            UserError: a damaged cluster file, more workers than GPUs, or a `device` that only one process can have.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(
                f"--device {device}: expected auto, cpu or cuda, for each worker has a GPU of its own; choose among "
                "them with CUDA_VISIBLE_DEVICES"
            )
        if self.scheduler is not None:
            return ExistingCluster(address=self.scheduler)
        if self.cluster is not None:
            cluster = load_cluster(self.cluster)
            return _on_gpus(cluster, None) if isinstance(cluster, CudaCluster) else cluster
        assert self.workers is not None
        if device == "cpu" or (device == "auto" and not visible_gpus()):
            return LocalCluster(workers=self.workers)
        return _on_gpus(CudaCluster(), self.workers)


def visible_gpus() -> tuple[str, ...]:
    """List the GPUs of this machine by the names that CUDA_VISIBLE_DEVICES takes.

    CUDA itself is not started.
    """
    import torch  # here: not every process that reads cluster files needs it

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",") if named else map(str, range(count)))[:count]


def _on_gpus(cluster: CudaCluster, workers: int | None) -> LocalCluster:
    gpus = visible_gpus() if cluster.gpus is None else cluster.gpus
    if len(gpus) < (workers or 1):
        option, mend = f"--workers {workers}", f"give --workers {len(gpus)}, or --device cpu"
        if workers is None:
            option, mend = "--cluster", "use --cluster local"
        elif not gpus:
            mend = "give --device cpu"
        raise UserError(f"{option}: each worker has a GPU of its own, and {len(gpus)} are visible; {mend}")
    chosen = gpus[: workers or len(gpus)]
    return LocalCluster(
        workers=len(chosen), gpus=chosen, memory_limit=cluster.memory_limit, start_timeout=cluster.start_timeout
    )


def load_cluster(name: str) -> _InFiles:
    """Read a cluster file from a path, or by the name of a packaged one (`jobs/clusters/NAME.yaml`).

    Raises:
        UserError: there is no such file, or it is not a cluster file. One line names every wrong key.
    """
    path = Path(name)
    packaged = data_folder("jobs") / "clusters"
    if not path.is_file():
        path = packaged / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in packaged.glob("*.yaml")))
        advice = _OVER_SSH if name == "ssh" else ""
        raise UserError(f"--cluster {name}: expected a YAML file, or one of {known}{advice}")
    try:
        content = yaml.load(path.read_text("utf-8"), UniqueKeyLoader)
        if not isinstance(content, dict):
            raise UserError(f"{path}: expected keys and values, as jobs/clusters/local.yaml has; found {content!r:.40}")
        if content.get("kind") == "ssh":
            raise UserError(f"{path}: kind: expected local, cuda or slurm; found ssh{_OVER_SSH}")
        return _FILE.validate_python(content)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is not YAML: {one_line(error)}") from error
    except ValidationError as error:
        problems = (
            f"{'.'.join(str(part) for part in item['loc'][1:]) or 'kind'}: {complaint(item)}"
            for item in error.errors(include_url=False)
        )
        raise UserError(f"{path}: {'; '.join(problems)}") from error
