"""What is right, and what each known mistake looks like: the only door between checks and misconceptions.

Where `course_lib.misconceptions` is installed, expectations are computed for any seed. The student
edition has neither reference nor mistakes in code: it reads what they produce for the public seed from
`expected/<topic>.npz`.
"""

import functools
import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources

import numpy as np

from course_lib.checks.observe import decode, encode, observe, stem
from course_lib.checks.piece import pieces

__all__ = ["PUBLIC_SEED", "Expectation", "Mistake", "expectation", "export", "unseen_layers"]

PUBLIC_SEED = 0


class Mistake:
    """A misconception as the judge sees it.

    Args:
        name, hint, read: as in the catalogue.
        observe: returns its observations. They are asked for when somebody looks: a right answer needs nobody's
            mistakes.
    """

    def __init__(self, name, hint, read, observe):
        self.name, self.hint, self.read, self._observe = name, hint, read, observe

    @functools.cached_property
    def truth(self):
        """Its observations, scenario by scenario."""
        return self._observe()


class _Observations(Mapping):
    """The observations of a mistake, {scenario: entry}. Each is made when somebody looks: most are never needed.

    Args:
        piece, impl, seed: what is observed.
        native: `{scenario: entry}` of the reference as it was observed, before anything is lifted.
        truth: the same in exact arithmetic. Where a mistake does to the bit what the reference does, it is right
            there, and its exact values are the reference's.
    """

    def __init__(self, piece, impl, seed, native, truth):
        def exact(name):
            seen = self.native(name)
            same = all(seen[key] == native[name][key] for key in ("seen", "error"))
            return truth[name] if same else _lifted(piece, impl, seed, {name: seen}, rounds=True)[name]

        self._names = list(native)
        self.native = functools.cache(lambda name: observe(piece, impl, seed, only=name)["scenarios"][name])
        self._exact = functools.cache(exact)

    def __getitem__(self, name):
        return self._exact(name)

    def __iter__(self):
        return iter(self._names)

    def __len__(self):
        return len(self._names)


@dataclass(frozen=True)
class Expectation:
    """Observations of the reference, and of every known mistake."""

    truth: dict
    mistakes: tuple[Mistake, ...]


@functools.lru_cache(maxsize=4096)
def expectation(piece, seed):
    """The expectations of a piece for a seed.

    Raises:
        ValueError: the student edition has them for the public seed only.
    """
    try:
        from course_lib import misconceptions
    except ImportError:
        return _shipped(piece, seed)
    right = misconceptions.reference(piece.name)
    native = observe(piece, right, seed)["scenarios"]
    truth = _lifted(piece, right, seed, native)
    mistakes = (
        Mistake(m.name, m.hint, m.read, lambda m=m: _Observations(piece, m.implementation(), seed, native, truth))
        for m in misconceptions.catalogue(piece.topic)
        if m.piece == piece.name
    )
    return Expectation(truth, tuple(mistakes))


def _lifted(piece, impl, seed, native, *, rounds=False):
    """Observed scenarios with facts as they are, in the case's own dtype, and values as in exact arithmetic.

    A mistake about rounding is none in exact arithmetic: with `rounds`, scenarios about rounding keep the
    values of the case's own dtype.
    """
    exact = {name: {**entry, "seen": dict(entry["seen"])} for name, entry in native.items()}
    kept = {scenario.name for scenario in piece.scenarios if rounds and scenario.rounding}
    for scenario, entry in exact.items():
        if scenario in kept or entry["exact"] or not any("array" in value for value in entry["seen"].values()):
            continue
        lifted = observe(piece, impl, seed, lift=True, only=scenario)["scenarios"][scenario]["seen"]
        for name, value in entry["seen"].items():
            if "array" in value and lifted.get(name, {}).get("shape") == value["shape"]:
                entry["seen"][name] = {**value, "array": lifted[name]["array"]}
    return exact


def unseen_layers(seed):
    """Sources of the layers that `accepts` is asked about with another seed than the public one: [(theme, source)].

    Raises:
        ValueError: the student edition has none.
    """
    try:
        from course_lib.misconceptions import modes_layers
    except ImportError:
        raise ValueError(f"expected seed={PUBLIC_SEED}, got {seed}: the layers of other seeds are unseen") from None
    return modes_layers.sent(seed)


def export(topic):
    """The public seed's expectations of a topic as the bytes of an `.npz`: data only, no code.

    Values keep ten digits, so that the file does not depend on the last bits of the computer that wrote it. Of a
    mistake there are only the scenarios that it gets wrong: most of it is right.
    """
    arrays, index = {}, {}
    for piece in pieces(topic):
        found = expectation(piece, PUBLIC_SEED)
        truth, mistakes = _pack(found.truth, arrays), []
        for m in found.mistakes:
            wrong = {name: entry for name, entry in _pack(m.truth, arrays).items() if entry != truth[name]}
            mistakes.append({"name": m.name, "hint": m.hint, "read": m.read, "truth": wrong})
        index[piece.name] = {"truth": truth, "mistakes": mistakes}
    buffer = io.BytesIO()
    np.savez(buffer, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def _pack(truth, arrays):
    packed = {}
    for scenario, entry in truth.items():
        seen = {}
        for name, value in entry["seen"].items():
            seen[name] = value
            if "array" in value:
                rounded = _ten_digits(decode(value))
                # Named by its content: an array that is there already is not written again.
                key = hashlib.sha256(str(rounded.shape).encode() + rounded.tobytes()).hexdigest()[:16]
                arrays[key] = rounded
                seen[name] = {**value, "array": key}
        error = entry["error"] and {"kind": entry["error"]["kind"], "message": stem(entry["error"]), "line": ""}
        packed[scenario] = {**entry, "seen": seen, "error": error, "printed": ""}
    return packed


def _ten_digits(values):
    return np.array([float(f"{value:.9e}") for value in values.ravel()]).reshape(values.shape)


def _shipped(piece, seed):
    if seed != PUBLIC_SEED:
        raise ValueError(
            f"expected seed={PUBLIC_SEED}, got {seed}: the student edition knows what is right for the public seed only"
        )
    index, arrays = _read(piece.topic)
    entry = index[piece.name]
    truth = _unpack(entry["truth"], arrays)
    mistakes = (
        Mistake(m["name"], m["hint"], m["read"], lambda m=m: {**truth, **_unpack(m["truth"], arrays)})
        for m in entry["mistakes"]
    )
    return Expectation(truth, tuple(mistakes))


@functools.cache
def _read(topic):
    data = resources.files("course_lib.checks").joinpath("expected", f"{topic}.npz").read_bytes()
    with np.load(io.BytesIO(data)) as arrays:
        loaded = {key: arrays[key] for key in arrays.files}
    return json.loads(loaded.pop("index").tobytes()), loaded


def _unpack(truth, arrays):
    unpacked = {}
    for scenario, entry in truth.items():
        seen = {
            name: {**value, "array": encode(arrays[value["array"]])["array"]} if "array" in value else value
            for name, value in entry["seen"].items()
        }
        unpacked[scenario] = {**entry, "seen": seen}
    return unpacked
