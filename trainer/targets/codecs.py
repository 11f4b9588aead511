"""Encodes a teacher's refined embeddings V^ as bytes, and decodes them.

There are three codecs for vectors of width d. float16 takes 2 d bytes a vector. int8 takes d + 2 bytes; it standardises
dimensions first, because a few of them are a hundred times larger than the others. pq64 takes 64 bytes for any d, and
is for a first look. A codec is fitted to a sample of vectors, then fixed. Only fitting pq64 needs FAISS; the rest is
numpy. Judge a codec by the gradients of the losses, not by their values, which hide damage.
"""

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt

from sea_pipeline.core.errors import UserError, one_line
from sea_pipeline.core.extras import require
from sea_pipeline.storage.paths import Place
from sea_pipeline.storage.publish import local_copy
from sea_pipeline.storage.retry import refuse_unreadable

CodecName = Literal["float16", "int8", "pq64"]

_KEY = "sea_pipeline"
_VERSION = 1
_SUBSPACES = 64
_CENTROIDS = 256
_COMPONENTS = 256
"""The most principal components that pq64 keeps, because 64 bytes say nothing of the rest."""
_LEAST_SPREAD = 1e-4
"""The least spread of a dimension, as a share of the spread of all."""
_OUTLIERS = 0.03
"""The least spread of a dimension, as a share of its standard deviation, so that outliers are not held too coarsely."""
_LEAST_SCALE = np.float32(2.0**-14)
"""The least scale of a vector, because float16 loses digits below it."""

_Floats = npt.NDArray[np.float32]
_Bytes = npt.NDArray[np.uint8]


class Codec(Protocol):
    """Encodes V^, n vectors of width d, and decodes it."""

    @property
    def name(self) -> CodecName: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def bytes_per_vector(self) -> int: ...  # noqa: D102

    def encode(self, vectors: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.uint8]:
        """Encode floats (n, d), computed in float32, as uint8 (n, bytes_per_vector).

        Raises:
            ValueError: the shape is another one, or a value is not finite or too large for the codec. float16 raises a
                UserError for the latter, which is a ValueError, too.
        """
        ...

    def decode(self, codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Decode uint8 (n, bytes_per_vector) to float32 (n, d).

        Raises:
            ValueError: the shape or dtype is another one.
        """
        ...

    def parameters(self) -> dict[str, npt.NDArray[np.float32]]: ...  # noqa: D102


def bytes_per_vector(name: CodecName, width: int) -> int:
    """Return how many bytes a vector of this width takes."""
    return {"float16": 2 * width, "int8": width + 2, "pq64": _SUBSPACES}[name]


def fit_codec(name: CodecName, sample: npt.NDArray[np.floating[Any]]) -> Codec:
    """Fit a codec to a sample of vectors, floats (N, d), N >= 1.

    The same sample gives the same codec. pq64 wants some 10,000 vectors. With fewer than 256 its codebooks hold those
    of the sample, and little else.

    Raises:
        ValueError: there is no vector, or a value is not finite.
        UserError: pq64 without FAISS.
    """
    if sample.ndim != 2 or 0 in sample.shape:
        raise ValueError(f"expected a sample of shape (N, d), not empty; found {sample.shape}")
    vectors = _vectors(sample, sample.shape[1])
    if name == "float16":
        return Float16Codec(vectors.shape[1])
    return _fit_int8(vectors) if name == "int8" else _fit_pq64(vectors)


def save_codec(codec: Codec) -> bytes:
    """Write a codec as the bytes of a safetensors file.

    Equal codecs give equal bytes.
    """
    parameters = {name: np.ascontiguousarray(values, "<f4") for name, values in codec.parameters().items()}
    about = {"codec": codec.name, "version": _VERSION, "width": codec.width, "sha256": codec_sha256(codec)}
    metadata = {_KEY: json.dumps(about)}  # one key, because safetensors writes several in any order
    saved: bytes = require("safetensors.numpy", "train").save(parameters, metadata)
    return saved


def load_codec(path: Place) -> Codec:
    """Load the codec that `save_codec` wrote.

    Raises:
        UserError: the file is absent, damaged, not a codec, or a codec of another version.
    """
    safetensors = require("safetensors", "train")
    try:
        with local_copy(path) as copy:
            copy.open("rb").close()  # of a file that may not be read safetensors says that there is none
            with safetensors.safe_open(copy, framework="numpy") as file:
                about = json.loads((file.metadata() or {}).get(_KEY, "{}"))
                parameters: dict[str, _Floats] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, TypeError, ValueError, RecursionError, safetensors.SafetensorError) as error:
        refuse_unreadable(path, error)
        raise UserError(f"{path}: expected a codec, found a problem: {one_line(error)}") from error
    about = about if isinstance(about, dict) else {}
    name, width = about.get("codec"), about.get("width")
    if name not in _BY_NAME or not isinstance(width, int) or about.get("version") != _VERSION:
        expected, found = f"{', '.join(get_args(CodecName))} in version {_VERSION}", about or "something else"
        raise UserError(f"{path}: expected a codec ({expected}), found {found}; use the sea-pipeline that wrote it")
    wanted = _shapes(name, width)
    shapes = {parameter: values.shape for parameter, values in parameters.items()}
    if shapes != wanted or {values.dtype for values in parameters.values()} - {np.dtype("<f4")}:
        raise UserError(f"{path}: damaged: expected float32 parameters {wanted}, found {shapes}")
    codec: Codec = _BY_NAME[name](width, **parameters)
    if codec_sha256(codec) != about.get("sha256"):
        raise UserError(f"{path}: damaged: expected the parameters that were written, found others")
    return codec


@dataclass(frozen=True, eq=False)
class _FittedCodec:
    name: ClassVar[CodecName]
    width: int

    @property
    def bytes_per_vector(self) -> int:
        return bytes_per_vector(self.name, self.width)

    def parameters(self) -> dict[str, _Floats]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "width"}


@dataclass(frozen=True, eq=False)
class Float16Codec(_FittedCodec):
    """Encodes each value as the nearest float16, little-endian.

    A value that float16 cannot hold is an error, not an infinity.
    """

    name = "float16"

    def encode(self, vectors: npt.NDArray[np.floating[Any]]) -> _Bytes:
        """Encode vectors, see `Codec`."""
        exact = _vectors(vectors, self.width)
        with np.errstate(over="ignore"):
            halves = exact.astype("<f2")
        if not np.isfinite(halves).all():
            largest = exact.flat[np.abs(exact).argmax()]
            raise UserError(f"expected values that float16 can hold, 65,504 at most; found {largest:,.0f}; use int8")
        return halves.view(np.uint8)

    def decode(self, codes: _Bytes) -> _Floats:
        """Decode vectors, see `Codec`."""
        return _codes(codes, self).view("<f2").astype(np.float32)


@dataclass(frozen=True, eq=False)
class Int8Codec(_FittedCodec):
    """Encodes x = centre + spread * scale * q, with one float16 scale for each vector.

    Dimensions are standardised by the sample first. The bytes of a vector are q (d int8, -127 to 127), then its scale
    (little-endian). The error of a value is at most half a step, scale * spread / 2. The scale grows with the vector,
    so a vector outside the sample's range is held, too.
    """

    name = "int8"
    centre: _Floats
    """(d,), medians."""
    spread: _Floats
    """(d,), positive: half the range of the middle 68 %, which for a normal distribution is the standard deviation."""

    def encode(self, vectors: npt.NDArray[np.floating[Any]]) -> _Bytes:
        """Encode vectors, see `Codec`."""
        exact = _vectors(vectors, self.width)
        with np.errstate(over="ignore"):
            standard = (exact - self.centre) / self.spread
            # The largest value of a vector becomes q = 127.
            largest = np.abs(standard).max(axis=1, keepdims=True, initial=0)
            scales = np.maximum(largest / 127, _LEAST_SCALE).astype("<f2")
        if not np.isfinite(scales).all():
            raise ValueError(
                f"expected values within 8,000,000 spreads of the sample's median, found one at {largest.max():,.0f}"
            )
        # Divide by the scale as float16 holds it, which is what `decode` multiplies by.
        steps = np.rint(standard / scales.astype(np.float32)).clip(-127, 127).astype(np.int8)
        return np.concatenate([steps.view(np.uint8), scales.view(np.uint8)], axis=1)

    def decode(self, codes: _Bytes) -> _Floats:
        """Decode vectors, see `Codec`."""
        codes = _codes(codes, self)
        scales = np.ascontiguousarray(codes[:, self.width :]).view("<f2").astype(np.float32)
        return codes[:, : self.width].view(np.int8) * scales * self.spread + self.centre


@dataclass(frozen=True, eq=False)
class Pq64Codec(_FittedCodec):
    """Encodes x = mean + [c_1[code_1] ... c_64[code_64]] @ axes, a product quantizer over principal components.

    The axes are dealt out to 64 subspaces of like variance (Ge et al., Optimized Product Quantization, the parametric
    solution). On V^ of SmolLM2 the mean 1 - cosine is .012, that of a plain product quantizer .023, of FAISS's OPQ .02.
    """

    name = "pq64"
    mean: _Floats
    """(d,)"""
    axes: _Floats
    """(r, d), r <= 256 a multiple of 64; orthonormal rows, zeros beyond d."""
    codebooks: _Floats
    """(64, 256, r / 64)"""

    def encode(self, vectors: npt.NDArray[np.floating[Any]]) -> _Bytes:
        """Encode vectors by the nearest of 256 centroids in each subspace, see `Codec`."""
        parts = (_vectors(vectors, self.width) - self.mean) @ self.axes.T
        parts = parts.reshape(len(vectors), _SUBSPACES, self.codebooks.shape[-1])
        codes = np.empty((len(parts), _SUBSPACES), np.uint8)
        for subspace, centroids in enumerate(self.codebooks):
            # |x - c|^2 / 2 without |x|^2, which is the same for all centroids: |c|^2 / 2 - x . c
            distances = np.square(centroids).sum(-1) / 2 - parts[:, subspace] @ centroids.T
            codes[:, subspace] = distances.argmin(-1)
        return codes

    def decode(self, codes: _Bytes) -> _Floats:
        """Decode vectors, see `Codec`."""
        parts = self.codebooks[np.arange(_SUBSPACES), _codes(codes, self)]
        decoded: _Floats = parts.reshape(len(codes), len(self.axes)) @ self.axes + self.mean
        return decoded


_BY_NAME: dict[str, Any] = {codec.name: codec for codec in (Float16Codec, Int8Codec, Pq64Codec)}


def _shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    r = min(_COMPONENTS, -(-width // _SUBSPACES) * _SUBSPACES)  # in whole subspaces
    shapes: dict[str, tuple[int, ...]] = {"axes": (r, width)} | dict.fromkeys(("mean", "centre", "spread"), (width,))
    shapes["codebooks"] = _SUBSPACES, _CENTROIDS, r // _SUBSPACES
    return {field.name: shapes[field.name] for field in fields(_BY_NAME[name]) if field.name != "width"}


def _fit_int8(vectors: _Floats) -> Int8Codec:
    # Quantiles, because a few tokens are a hundred times longer than the rest and would decide mean and deviation.
    low, centre, high = np.quantile(vectors.astype(np.float64), (0.1587, 0.5, 0.8413), axis=0)
    spread = np.maximum((high - low) / 2, _OUTLIERS * vectors.std(0, dtype=np.float64))
    overall = np.sqrt(np.square(spread).mean())
    # A dimension that does not vary in the sample may do so later.
    spread = np.maximum(spread, _LEAST_SPREAD * overall) if overall else np.ones_like(spread)
    return Int8Codec(vectors.shape[1], centre.astype(np.float32), spread.astype(np.float32))


def _fit_pq64(vectors: _Floats) -> Pq64Codec:
    faiss: Any = require("faiss", "cpu")
    faiss.cvar.distance_compute_blas_threshold = 20  # as in the search: ten times faster
    mean = vectors.mean(0, dtype=np.float64).astype(np.float32)
    axes = _balanced_axes(vectors - mean)
    quantizer = faiss.ProductQuantizer(len(axes), _SUBSPACES, 8)
    quantizer.cp.min_points_per_centroid = 1  # otherwise FAISS writes to stderr
    # FAISS wants at least 256 vectors; np.resize repeats those of a smaller sample.
    quantizer.train(np.resize((vectors - mean) @ axes.T, (max(_CENTROIDS, len(vectors)), len(axes))))
    codebooks = faiss.vector_to_array(quantizer.centroids).reshape(_SUBSPACES, _CENTROIDS, -1)
    return Pq64Codec(vectors.shape[1], mean, axes, codebooks)


def _balanced_axes(centred: _Floats) -> _Floats:
    """Order the principal axes for 64 subspaces of like variance, (r, d).

    Each axis, by falling variance, goes to the subspace with room whose variances have the least product.
    """
    r, width = _shapes("pq64", centred.shape[1])["axes"]
    variances, vectors = np.linalg.eigh(centred.T.astype(np.float64) @ centred / len(centred))
    variances, vectors = variances[::-1][:r], vectors[:, ::-1][:, :r]
    least = max(variances[0], 1e-30) * 1e-9
    axes = np.zeros((_SUBSPACES, r // _SUBSPACES, width), np.float32)
    products, members = np.zeros(_SUBSPACES), np.zeros(_SUBSPACES, int)
    for variance, axis in zip(variances, vectors.T, strict=True):
        subspace = int(products.argmin())
        axes[subspace, members[subspace]] = axis
        members[subspace] += 1
        full = members[subspace] == r // _SUBSPACES
        # The logarithm of the product of variances; inf closes a full subspace.
        products[subspace] = np.inf if full else products[subspace] + np.log(max(variance, least) / least)
    return axes.reshape(r, width)


def _vectors(vectors: npt.NDArray[np.floating[Any]], width: int) -> _Floats:
    if vectors.ndim != 2 or vectors.shape[1] != width:
        raise ValueError(f"expected vectors of shape (n, {width}), found {vectors.shape}")
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(vectors, np.float32)
    if not np.isfinite(values).all():
        raise ValueError("expected vectors that are finite in float32, found NaN or infinity")
    return values


def _codes(codes: _Bytes, codec: Codec) -> _Bytes:
    size = codec.bytes_per_vector
    if codes.dtype != np.uint8 or codes.shape[1:] != (size,):
        raise ValueError(f"expected uint8 codes of shape (n, {size}), found {codes.dtype} {codes.shape}")
    return np.ascontiguousarray(codes)


def codec_sha256(codec: Codec) -> str:
    """Hash a codec's name, width and parameters.

    Codecs with equal hashes read the same codes.
    """
    digest = hashlib.sha256(f"{codec.name} {codec.width}".encode())
    for _, values in sorted(codec.parameters().items()):
        digest.update(np.ascontiguousarray(values, "<f4").tobytes())
    return digest.hexdigest()
