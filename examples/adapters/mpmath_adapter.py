#!/usr/bin/env python3
"""The specification computed a second time, in 50 decimal digits: an adapter for `grpo-oracle verify`.

Every formula here is written from `spec/*.md` alone, without a look at the Rust reference, so that where the two agree,
two readings of the text agree. It is slow and plain; nothing should be copied from it into a training loop.

    pip install mpmath                                          # Python 3.11 or later, nothing else
    grpo-oracle verify --adapter "python examples/adapters/mpmath_adapter.py"
    python examples/adapters/mpmath_adapter.py --check fixtures/v1   # compare with the fixtures, formula by formula

It speaks the adapter protocol: one JSON object a line on stdin and stdout. Beyond the protocol, `"digits": 30` in a run
request answers with decimal strings of so many significant digits instead of doubles. Inputs and options enter as the
doubles that JSON gives, exactly.

Gradients come from no formula. The function is evaluated once to record, in order, every decision (the branch that a
minimum, a clamp or a comparison took) and every detached value; then each differentiable entry is moved by +h and -h
while that record is replayed. The replayed function is smooth, and its central difference at 600 digits with h = 1e-200
is off by far less than the smallest double: at a tie, it is that of the branch that the clause prefers; through a
detached value, none.
Masked slots are taken out of the inputs before a formula sees them, so none of them can be read by mistake.
"""

import json
import math
import re
import sys
from fractions import Fraction
from itertools import product
from pathlib import Path

from mpmath import mp, mpf

DIGITS = 50
GRADIENT_DIGITS = 600
STEP = "1e-200"
NOISE = "1e-350"
MOST_DIGITS = 10_000
FORMULAS = {}
INF, NAN = mpf("inf"), mpf("nan")
# What takes the place of a logit of -inf while gradients are taken: the limit of ever smaller logits.
RULED_OUT = mpf(-10) ** 29 * 10
LARGEST = mpf(sys.float_info.max)


class Fault(Exception):
    """An answer that is an error, by its code."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


# Arrays ---------------------------------------------------------------------------------------------------------------


class Array:
    """Row-major; `a[i, j]` reads an entry, `a[()]` that of a scalar. A masked entry is None."""

    def __init__(self, shape, data):
        self.shape, self.data = tuple(shape), list(data)

    def offset(self, at):
        at = at if isinstance(at, tuple) else (at,)
        assert len(at) == len(self.shape)
        place = 0
        for index, length in zip(at, self.shape):
            assert 0 <= index < length
            place = place * length + index
        return place

    def __getitem__(self, at):
        return self.data[self.offset(at)]

    def replaced(self, place, value):
        return Array(self.shape, self.data[:place] + [value] + self.data[place + 1 :])


def indices(shape):
    return list(product(*(range(length) for length in shape)))


def table(shape, entry):
    return Array(shape, [entry(*at) for at in indices(shape)])


def scalar(value):
    return Array((), [value])


def token(array, b, t):
    """An input that may be `[B]` or `[B, T]`, at a token."""
    return array[b, t] if len(array.shape) == 2 else array[b]


def kept_at(mask):
    return [at for at in indices(mask.shape) if mask[at]]


def mean(values):
    return mp.fsum(values) / len(values)


def all_equal(values):
    return all(value == values[0] for value in values)


def numbered(labels):
    """The members of each group, in order of first appearance."""
    groups = {}
    for i, label in enumerate(labels.data):
        groups.setdefault(label, []).append(i)
    return list(groups.values())


# Decisions ------------------------------------------------------------------------------------------------------------


class Record:
    """Records decisions and detached values in a first evaluation and replays them in all further ones."""

    def __init__(self, finite_range):
        self.kept, self.replaying, self.finite_range, self.exponent = [], None, finite_range, 0

    def replay(self):
        self.replaying = iter(self.kept)

    def stop(self, value):
        if self.replaying is not None:
            return next(self.replaying)
        self.kept.append(value)
        return value

    decide = stop

    def straight_through(self, value, gradient_of):
        """The value of the one, the gradient of the other."""
        # Their difference is taken only where the digits are plenty.
        return value if self.finite_range else self.stop(value - gradient_of) + gradient_of

    def minimum(self, first, second):
        if mp.isnan(first) or mp.isnan(second):
            return NAN
        return first if self.decide(first <= second) else second

    def maximum(self, first, second):
        if mp.isnan(first) or mp.isnan(second):
            return NAN
        return first if self.decide(first >= second) else second

    def clip(self, x, low, high):
        if self.decide(x < low):
            return mpf(low)
        return mpf(high) if self.decide(x > high) else x

    def within(self, x, bound):
        """The symmetric clamps that an option may switch off."""
        return x if bound is None else self.clip(x, -bound, bound)

    def absolute(self, x):
        if self.decide(x == 0):
            return mpf(0)
        return x if self.decide(x > 0) else -x

    def exp(self, x):
        """Overflows as a double does, except where only the derivative is asked for."""
        value = mp.exp(x)
        self.exponent = max(self.exponent, int(mp.mag(value)) if mp.isfinite(value) and value else 0)
        return INF if self.finite_range and value > LARGEST else value


# The table ------------------------------------------------------------------------------------------------------------


class Input:
    def __init__(self, kind, dims, gradient="none", optional=False, minus_infinity=False):
        self.kind, self.dims, self.gradient = kind, dims.split("|"), gradient
        self.optional, self.minus_infinity = optional, minus_infinity


def flows(dims, **more):
    return Input("real", dims, "flows", **more)


def stops(dims, **more):
    return Input("real", dims, "stops", **more)


def data(dims, **more):
    return Input("real", dims, **more)


def mask(dims, **more):
    return Input("mask", dims, **more)


def labels(dims, **more):
    return Input("label", dims, **more)


def wholes(dims, **more):
    return Input("whole", dims, **more)


def texts(dims, **more):
    return Input("text", dims, **more)


def number(least=None, above=None, most=None, below=None):
    def read(value):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ValueError("not a finite number")
        inside = (
            (least is None or value >= least)
            and (above is None or value > above)
            and (most is None or value <= most)
            and (below is None or value < below)
        )
        if not inside:
            raise ValueError("out of its domain")
        return mpf(value)

    return read


def whole(least=0, most=None):
    def read(value):
        if not is_whole(value):
            raise ValueError("not a whole number")
        if value < least or (most is not None and value > most):
            raise ValueError("out of its domain")
        return int(value)

    return read


def choice(*names):
    def read(value):
        if not isinstance(value, str) or value not in names:
            raise ValueError("not one of " + ", ".join(names))
        return value

    return read


def flag(value):
    if not isinstance(value, bool):
        raise ValueError("not a boolean")
    return value


def optional(reader):
    return lambda value: None if value is None else reader(value)


class Names:
    """Inputs or options by attribute."""

    def __init__(self, values):
        self.__dict__.update(values)

    def with_(self, **changed):
        return Names({**self.__dict__, **changed})


def formula(name, inputs, options=None, masked_by=None, unread=lambda o: ()):
    """`unread` names the inputs that the options leave without a use: only their shape counts."""

    def register(function):
        function.inputs, function.options = inputs, options or {}
        function.masked_by, function.unread = masked_by, unread
        FORMULAS[name] = function
        return function

    return register


# Reading a question ---------------------------------------------------------------------------------------------------

NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def is_whole(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == math.floor(value)


def read_entry(kind, value, name):
    if kind == "text":
        fine = isinstance(value, str)
    elif kind == "label":
        fine = isinstance(value, str) or is_whole(value)
    elif kind == "mask":
        fine = isinstance(value, (bool, int, float)) and value in (0, 1)
        value = bool(value) if fine else value
    elif kind == "whole":
        fine = is_whole(value)
        value = int(value) if fine else value
    else:
        value = NON_FINITE.get(value, value) if isinstance(value, str) else value
        fine = isinstance(value, (int, float)) and not isinstance(value, bool)
        value = mpf(float(value)) if fine else value
    if not fine:
        raise Fault("input", f"{name}: {value!r} is no {kind}")
    return value


def read_inputs(function, options, given):
    unknown = set(given) - set(function.inputs)
    if unknown:
        raise Fault("input", "unknown: " + ", ".join(sorted(unknown)))
    x, lengths = {}, {}
    for name, spec in function.inputs.items():
        if given.get(name) is None:
            if not spec.optional:
                raise Fault("input", f"{name} is missing")
            x[name] = None
            continue
        try:
            shape, entries = given[name]["shape"], given[name]["data"]
        except (KeyError, TypeError):
            raise Fault("input", f"{name} is no array") from None
        if math.prod(shape) != len(entries):
            raise Fault("input", f"{name}: {len(entries)} entries in the shape {shape}")
        x[name] = Array(shape, [read_entry(spec.kind, entry, name) for entry in entries])
        check_shape(name, spec, x[name].shape, lengths)
    if function.masked_by:
        drop_masked(function, x)
    for name in function.unread(options):
        if x[name] is not None:
            x[name].data = [None] * len(x[name].data)
    for name, spec in function.inputs.items():
        if spec.kind == "real" and x[name] is not None:
            for value in x[name].data:
                if value is not None and not mp.isfinite(value) and not (spec.minus_infinity and value == -INF):
                    raise Fault("non-finite", f"{name} has {value}")
    return x


def check_shape(name, spec, shape, lengths):
    """Axes go by letters, each with one length throughout; `...` stands for any axes, the same ones throughout."""
    if spec.dims == ["..."]:
        if len(shape) > 6:
            raise Fault("input", f"{name} has more than 6 axes")
        letters = [str(axis) for axis in range(len(shape))]
        if lengths.setdefault("axes", len(shape)) != len(shape):
            raise Fault("rank", f"{name} has {len(shape)} axes")
    else:
        fitting = [dims for dims in spec.dims if len(dims) == len(shape)]
        if not fitting:
            raise Fault("rank", f"{name} has {len(shape)} axes")
        letters = fitting[0]
    for letter, length in zip(letters, shape):
        if lengths.setdefault(letter, length) != length:
            raise Fault("shape", f"{name}: an axis of {length} where an earlier input has {lengths[letter]}")


def drop_masked(function, x):
    """Takes out what the mask does not keep; a `[B]` entry is kept if any token of its sequence is."""
    kept = x[function.masked_by]
    if kept is None:
        return
    for name, spec in function.inputs.items():
        if spec.kind != "real" or x[name] is None:
            continue
        array = x[name]
        if array.shape[: len(kept.shape)] == kept.shape:
            keeps = lambda at: kept[at[: len(kept.shape)]]
        elif array.shape == kept.shape[: len(array.shape)]:
            keeps = lambda at: any(kept[at + rest] for rest in indices(kept.shape[len(at) :]))
        else:
            continue
        array.data = [value if keeps(at) else None for at, value in zip(indices(array.shape), array.data)]


def read_options(function, given):
    unknown = set(given) - set(function.options)
    if unknown:
        raise Fault("option", "unknown: " + ", ".join(sorted(unknown)))
    options = {}
    for name, reader in function.options.items():
        if name not in given:
            raise Fault("option", f"{name} is missing")
        try:
            options[name] = reader(given[name])
        except (ValueError, OverflowError) as error:
            raise Fault("option", f"{name}: {given[name]!r} is {error}") from None
    return Names(options)


# Answering ------------------------------------------------------------------------------------------------------------


def evaluate(name, given_options, given_inputs, want_gradients=True, digits=DIGITS):
    """The outputs and the gradients of one formula, in high precision."""
    function = FORMULAS[name]
    with mp.workdps(digits):
        options = read_options(function, given_options)
        x = read_inputs(function, options, given_inputs)
        outputs = function(Record(finite_range=True), Names(x), options)
    gradients = {}
    if want_gradients:
        # A sum that holds an exponential beyond the doubles needs the digits to keep its small terms.
        record = Record(finite_range=False)
        with mp.workdps(GRADIENT_DIGITS):
            first_output(function, record, limits(x), options)
        with mp.workdps(GRADIENT_DIGITS + min(MOST_DIGITS, record.exponent // 3)):
            gradients = differences(function, limits(x), options)
    return outputs, gradients


def differences(function, x, options):
    record = Record(finite_range=False)
    base = first_output(function, record, x, options)
    gradients = {}
    for name, spec in function.inputs.items():
        if spec.gradient == "none" or x[name] is None:
            continue
        gradients[name] = Array(x[name].shape, [mpf(0)] * len(x[name].data))
        if spec.gradient == "stops":
            continue
        for place, value in enumerate(x[name].data):
            if value is None:
                continue
            moved = []
            for sign in (1, -1):
                record.replay()
                nudged = {**x, name: x[name].replaced(place, value + sign * mpf(STEP))}
                moved.append(first_output(function, record, nudged, options))
            # An entry that is NaN by decree (the mean of nothing) is a constant.
            terms = [up - down for up, down, at in zip(*moved, base) if mp.isfinite(at)]
            slope = mp.fsum(terms) / (2 * mpf(STEP))
            gradients[name].data[place] = slope if abs(slope) > mpf(NOISE) else mpf(0)
    return gradients


def limits(x):
    """The inputs with a stand-in for every logit of -inf."""
    stand_in = lambda value: RULED_OUT if isinstance(value, mpf) and value == -INF else value
    return {name: array and Array(array.shape, map(stand_in, array.data)) for name, array in x.items()}


def first_output(function, record, x, options):
    return next(iter(function(record, Names(x), options).values())).data


def as_double(value):
    if isinstance(value, (bool, int)):
        return float(value)
    return float(value) if isinstance(value, mpf) else value


def plain(value, digits):
    if isinstance(value, str):
        return value
    double = as_double(value)
    if math.isnan(double):
        return "NaN"
    if mp.isinf(value) or (math.isinf(double) and digits is None):
        return "Infinity" if double > 0 else "-Infinity"
    if digits is None:
        return double
    with mp.workdps(digits + 10):
        return mp.nstr(mpf(value), digits, strip_zeros=False)


def written(array, digits):
    return {"shape": list(array.shape), "data": [plain(value, digits) for value in array.data]}


def run(request):
    name, digits = request.get("formula"), request.get("digits")
    if name not in FORMULAS:
        return {"unsupported": f"no formula {name} here"}
    want = request.get("want")
    with_gradients = want is None or any(item.startswith("grad:") for item in want)
    try:
        working = DIGITS if digits is None else max(DIGITS, digits + 20)
        outputs, gradients = evaluate(
            name, request.get("options", {}), request.get("inputs", {}), with_gradients, working
        )
    except Fault as fault:
        return {"error": {"kind": fault.kind, "message": str(fault)}}
    answers = {**outputs, **{"grad:" + key: value for key, value in gradients.items()}}
    if want is None:
        want = list(answers)
    missing = [item for item in want if item not in answers]
    if missing:
        return {"unsupported": "no output " + ", ".join(missing)}
    return {"ok": {item: written(answers[item], digits) for item in want}}


def serve():
    hello = {
        "protocol": 1,
        "name": "grpo-oracle-mpmath",
        "version": "1",
        "language": "python",
        "dtype": "f64",
        "formulas": list(FORMULAS),
    }
    for line in sys.stdin:
        if not line.strip():
            continue
        request = json.loads(line)
        command = request.get("cmd")
        if command == "bye":
            break
        answer = {"ok": hello} if command == "hello" else run(request) if command == "run" else {"unsupported": command}
        print(json.dumps({"id": request.get("id"), **answer}), flush=True)


# Checking the fixtures ------------------------------------------------------------------------------------------------


class Tally:
    def __init__(self):
        self.worst, self.entries, self.exact, self.conditioning, self.share = math.inf, 0, 0, 0, 0.0


def compare(tally, mine, theirs, bound, wanted_bits):
    """None, or what is wrong with an entry. `share` is the fixture's own error in parts of its bound."""
    tally.entries += 1
    if isinstance(mine, str) or isinstance(theirs, str) and theirs not in NON_FINITE:
        tally.exact += mine == theirs
        return None if mine == theirs else f"{mine!r}, in the fixture {theirs!r}"
    theirs = NON_FINITE.get(theirs, theirs) if isinstance(theirs, str) else float(theirs)
    rounded = as_double(mine)
    if rounded == theirs or (math.isnan(rounded) and math.isnan(theirs)):
        tally.exact += 1
        return None
    said = f"{plain(mine, 20)}, in the fixture {theirs!r}"
    if not (math.isfinite(rounded) and math.isfinite(theirs)):
        return said
    if bound == 0:
        return said + ", which is to be met exactly (bound 0)"
    distance = abs(mine - mpf(theirs))
    bits = -float(mp.log(distance / max(abs(mine), abs(mpf(theirs))), 2))
    if bound is not None and bound > 0:
        tally.share = max(tally.share, float(distance / (mpf(2) ** -53 * bound)))
    if bits >= wanted_bits:
        tally.worst = min(tally.worst, bits)
        return None
    if bound is not None and distance <= 4 * mpf(2) ** -53 * bound:
        tally.conditioning += 1
        return None
    tally.worst = min(tally.worst, bits)
    return said + f", {bits:.1f} bits"


def check_case(name, case, tallies):
    expect, complaints = case["expect"], []
    try:
        outputs, gradients = evaluate(name, case["options"], case["inputs"])
    except Fault as fault:
        tallies["errors"] += 1
        if expect.get("error") != fault.kind:
            complaints.append(f"error {fault.kind} ({fault}), in the fixture {expect.get('error', 'an answer')}")
        return complaints
    if "error" in expect:
        return [f"an answer, in the fixture the error {expect['error']}"]
    for kind, mine, wanted_bits in (("outputs", outputs, 48), ("gradients", gradients, 40)):
        theirs = expect[kind]
        if set(mine) != set(theirs):
            complaints.append(f"{kind} {sorted(mine)}, in the fixture {sorted(theirs)}")
        for key in sorted(set(mine) & set(theirs)):
            array, fixture = mine[key], theirs[key]
            if list(array.shape) != fixture["shape"]:
                complaints.append(f"{key} has the shape {list(array.shape)}, in the fixture {fixture['shape']}")
                continue
            bounds = expect["bounds"].get(key if kind == "outputs" else "grad:" + key)
            bounds = bounds["data"] if bounds else [None] * len(fixture["data"])
            for place, entry in enumerate(zip(array.data, fixture["data"], bounds)):
                a, b, bound = entry
                bound = NON_FINITE.get(bound, bound) if isinstance(bound, str) else bound
                complaint = compare(tallies[kind], a, b, bound, wanted_bits)
                if complaint:
                    complaints.append(f"{'grad:' if kind == 'gradients' else ''}{key}[{place}] is {complaint}")
    return complaints


def check(folder):
    """One line a formula: worst bits of values and gradients, how many entries only their bound explains, and the
    largest error of the fixture in parts of its bound."""
    print(
        f"{'formula':<32}{'cases':>6}{'errors':>7}  {'values: bits, conditioning, of bound':<38}{'gradients':<38}wrong"
    )
    failed, covered = 0, set()
    for path in sorted(Path(folder).glob("*/*.json")):
        fixture = json.loads(path.read_text())
        name = fixture["formula"]
        if name not in FORMULAS:
            print(f"{name:<32}{len(fixture['cases']):>6}  not here")
            continue
        covered.add(name)
        tallies, wrong = {"outputs": Tally(), "gradients": Tally(), "errors": 0}, []
        for case in fixture["cases"]:
            complaints = check_case(name, case, tallies)
            margin = float(case["margin"]) if case["margin"] is not None else math.inf
            if complaints and margin <= 4 * 2.0**-53:
                complaints = [f"(undecided at this precision) {complaint}" for complaint in complaints]
            wrong += [f"{case['id']}: {complaint}" for complaint in complaints]
        columns = []
        for tally in (tallies["outputs"], tallies["gradients"]):
            bits = "none" if not tally.entries else "exact" if tally.worst == math.inf else f"{tally.worst:.1f}"
            columns.append(f"{bits:>6} {tally.exact}/{tally.entries} exact, {tally.conditioning}, {tally.share:.2f}")
        print(
            f"{name:<32}{len(fixture['cases']):>6}{tallies['errors']:>7}  {columns[0]:<38}{columns[1]:<38}{len(wrong)}"
        )
        for complaint in wrong:
            print("    " + complaint)
        failed += len(wrong)
    print("without a fixture:", ", ".join(sorted(set(FORMULAS) - covered)) or "none")
    return 1 if failed else 0


# mask -----------------------------------------------------------------------------------------------------------------


AXIS = optional(whole())
MASKED_VALUES = {"values": flows("..."), "mask": mask("...")}


def kept_of(entries):
    return [value for value in entries if value is not None]


@formula(
    "mask.mean",
    inputs=MASKED_VALUES,
    options={"axis": AXIS, "empty": choice("zero", "nan")},
    masked_by="mask",
)
def mask_mean(c, x, o):
    def average(entries):
        kept = kept_of(entries)
        if kept:
            return mean(kept)
        return mpf(0) if o.empty == "zero" else NAN

    return {"mean": along(x.values, o.axis, average)}


@formula("mask.sum", inputs=MASKED_VALUES, options={"axis": AXIS}, masked_by="mask")
def mask_sum(c, x, o):
    return {"sum": along(x.values, o.axis, lambda entries: mp.fsum(kept_of(entries)))}


@formula(
    "mask.normalize",
    inputs=MASKED_VALUES,
    options={"axis": AXIS, "constant": number(above=0)},
    masked_by="mask",
)
def mask_normalize(c, x, o):
    return {"normalized": along(x.values, o.axis, lambda entries: mp.fsum(kept_of(entries)) / o.constant)}


def along(array, axis, reduce):
    """Reduces every lane along an axis, or the whole array."""
    if axis is None:
        return scalar(reduce(array.data))
    if axis >= len(array.shape):
        raise Fault("option", f"the array has no axis {axis}")
    shape = array.shape[:axis] + array.shape[axis + 1 :]
    lane = lambda at: [array[at[:axis] + (i,) + at[axis:]] for i in range(array.shape[axis])]
    return table(shape, lambda *at: reduce(lane(at)))


@formula("mask.variance", inputs=MASKED_VALUES, options={"ddof": whole(most=1)}, masked_by="mask")
def mask_variance(c, x, o):
    return {"variance": scalar(masked_variance(c, kept_of(x.values.data), o.ddof))}


def masked_variance(c, values, ddof):
    if len(values) <= ddof or not values:
        raise Fault("too-few", f"{len(values)} kept entries")
    if c.decide(all_equal(values)):
        return mpf(0)
    middle = mean(values)
    return mp.fsum((value - middle) ** 2 for value in values) / (len(values) - ddof)


@formula(
    "mask.whiten",
    inputs=MASKED_VALUES,
    options={"ddof": whole(most=1), "eps": number(least=0), "eps_mode": choice("add", "clamp"), "shift_mean": flag},
    masked_by="mask",
)
def mask_whiten(c, x, o):
    kept = kept_of(x.values.data)
    spread_of = masked_variance(c, kept, o.ddof)
    middle, equal = mean(kept), c.decide(all_equal(kept))
    root = mp.sqrt(spread_of + o.eps if o.eps_mode == "add" else c.maximum(spread_of, o.eps))

    def entry(value):
        if value is None:
            return mpf(0)
        shifted = mpf(0) if equal else (value - middle) / root
        return shifted if o.shift_mean else shifted + middle

    return {"whitened": Array(x.values.shape, [entry(value) for value in x.values.data])}


# advantage ------------------------------------------------------------------------------------------------------------


RAW_ZERO_ERROR = choice("raw", "zero", "error")
REWARDS_OF_GROUPS = {"rewards": data("B"), "group": labels("B")}
WHITEN_OPTIONS = {
    "whiten": flag,
    "whiten_ddof": whole(most=1),
    "whiten_eps": number(least=0),
    "whiten_eps_mode": choice("add", "clamp"),
}


def by_group(x, advantages_of):
    """One advantage a response, from `advantages_of` the members of each group."""
    advantages = [None] * len(x.rewards.data)
    for members in numbered(x.group):
        for i, advantage in zip(members, advantages_of(members)):
            advantages[i] = advantage
    return Array(x.rewards.shape, advantages)


def singleton(reward, o):
    if o.singleton == "error":
        raise Fault("group-size", "a group of one")
    return mpf(0) if o.singleton == "zero" else reward


def centred(values):
    """Exactly 0 where all are equal."""
    if all_equal(values):
        return [mpf(0)] * len(values)
    middle = mean(values)
    return [value - middle for value in values]


def variance(values, ddof):
    return mp.fsum(d * d for d in centred(values)) / (len(values) - ddof)


def deviation(values, std):
    return mp.sqrt(variance(values, ddof=1 if std == "sample" else 0))


@formula(
    "advantage.group_norm",
    inputs=REWARDS_OF_GROUPS,
    options={
        "std": choice("sample", "population", "none"),
        "std_scope": choice("group", "batch", "leave_one_out"),
        "eps": number(least=0),
        "eps_mode": choice("add", "threshold", "floor_variance"),
        "singleton": choice("raw", "unit_std", "zero", "error"),
    },
)
def advantage_group_norm(c, x, o):
    def of_group(members):
        rewards = [x.rewards[i] for i in members]
        if len(rewards) == 1:
            if o.singleton == "unit_std":
                return [rewards[0] if o.std == "none" or o.eps_mode == "threshold" else rewards[0] / (1 + o.eps)]
            return [singleton(rewards[0], o)]
        if all_equal(rewards):
            return [mpf(0)] * len(rewards)
        if o.std_scope == "leave_one_out":
            return [against_others(i, rewards) for i in range(len(rewards))]
        if o.std == "none":
            return centred(rewards)
        sigma = deviation(rewards if o.std_scope == "group" else x.rewards.data, o.std)
        return [quotient(d, sigma) for d in centred(rewards)]

    def against_others(i, rewards):
        others = rewards[:i] + rewards[i + 1 :]
        lead = rewards[i] - mean(others)
        return lead if o.std == "none" or all_equal(others) else quotient(lead, deviation(others, o.std))

    def quotient(lead, sigma):
        if o.eps_mode == "add":
            return lead / (sigma + o.eps)
        if o.eps_mode == "threshold":
            return mpf(0) if sigma < o.eps else lead / sigma
        return lead / (mp.sqrt(max(sigma**2, o.eps)) + o.eps)

    return {"advantages": by_group(x, of_group)}


@formula("advantage.relative", inputs=REWARDS_OF_GROUPS)
def advantage_relative(c, x, o):
    def baseline(members):
        rewards = [x.rewards[i] for i in members]
        return [rewards[0] if all_equal(rewards) else mean(rewards)] * len(rewards)

    return {
        "relative": by_group(x, lambda members: centred([x.rewards[i] for i in members])),
        "baseline": by_group(x, baseline),
    }


@formula("advantage.rloo", inputs=REWARDS_OF_GROUPS, options={"singleton": RAW_ZERO_ERROR})
def advantage_rloo(c, x, o):
    def of_group(members):
        rewards = [x.rewards[i] for i in members]
        n = len(rewards)
        return [singleton(rewards[0], o)] if n == 1 else [n * d / (n - 1) for d in centred(rewards)]

    return {"advantages": by_group(x, of_group)}


@formula(
    "advantage.reinforce_plus_plus",
    inputs={"rewards": data("BT"), "response_mask": mask("BT")},
    options={"gamma": number(least=0, most=1), "mask_mode": choice("carry", "reset"), **WHITEN_OPTIONS},
    masked_by="response_mask",
)
def advantage_reinforce_plus_plus(c, x, o):
    kept = x.response_mask

    def follows(b, t):
        tokens = []
        for s in range(t, kept.shape[1]):
            if kept[b, s]:
                tokens.append(s)
            elif o.mask_mode == "reset":
                break
        return mp.fsum(o.gamma**k * x.rewards[b, s] for k, s in enumerate(tokens))

    returns = {at: follows(*at) for at in kept_at(kept)}
    return {
        "advantages": spread(kept, dict(zip(returns, whitened(list(returns.values()), o)))),
        "returns": spread(kept, returns),
    }


def spread(kept, values):
    """An array of the kept tokens' values, with 0 in the masked slots."""
    return table(kept.shape, lambda *at: values[at] if kept[at] else mpf(0))


def whitened(values, o):
    if not o.whiten:
        return values
    if len(values) <= o.whiten_ddof:
        raise Fault("too-few", f"{len(values)} kept tokens")
    if all_equal(values):
        return [mpf(0)] * len(values)
    v = variance(values, o.whiten_ddof)
    root = mp.sqrt(v + o.whiten_eps if o.whiten_eps_mode == "add" else max(v, o.whiten_eps))
    return [d / root for d in centred(values)]


@formula(
    "advantage.reinforce_plus_plus_baseline",
    inputs={**REWARDS_OF_GROUPS, "response_mask": mask("BT")},
    options={"singleton": RAW_ZERO_ERROR, **WHITEN_OPTIONS},
    masked_by="response_mask",
)
def advantage_reinforce_plus_plus_baseline(c, x, o):
    kept, value = x.response_mask, {}
    for members in numbered(x.group):
        present = [i for i in members if any(kept[i, t] for t in range(kept.shape[1]))]
        rewards = [x.rewards[i] for i in present]
        if present:
            value.update(zip(present, [singleton(rewards[0], o)] if len(present) == 1 else centred(rewards)))
    tokens = kept_at(kept)
    return {"advantages": spread(kept, dict(zip(tokens, whitened([value[b] for b, _ in tokens], o))))}


@formula(
    "advantage.remax",
    inputs={"rewards": data("BT"), "baselines": data("B"), "response_mask": mask("BT")},
    masked_by="response_mask",
)
def advantage_remax(c, x, o):
    kept = x.response_mask
    tokens = kept_at(kept)
    returns = {(b, t): mp.fsum(x.rewards[i, s] for i, s in tokens if i == b and s >= t) for b, t in tokens}
    return {
        "advantages": spread(kept, {(b, t): value - x.baselines[b] for (b, t), value in returns.items()}),
        "returns": spread(kept, returns),
    }


@formula(
    "advantage.opo",
    inputs={**REWARDS_OF_GROUPS, "lengths": data("B")},
    options={"singleton": RAW_ZERO_ERROR},
)
def advantage_opo(c, x, o):
    if any(length < 0 for length in x.lengths.data):
        raise Fault("input", "a length below 0")

    def of_group(members):
        rewards, lengths = [x.rewards[i] for i in members], [x.lengths[i] for i in members]
        if len(rewards) == 1:
            return [singleton(rewards[0], o)]
        if all_equal(rewards):
            return [mpf(0)] * len(rewards)
        if not any(lengths):
            raise Fault("input", "a group without any length")
        baseline = mp.fsum(l * r for l, r in zip(lengths, rewards)) / mp.fsum(lengths)
        return [reward - baseline for reward in rewards]

    return {"advantages": by_group(x, of_group)}


@formula(
    "advantage.gpg",
    inputs=REWARDS_OF_GROUPS,
    options={
        "alpha": choice("nonzero_rewards", "valid_groups", "one"),
        "f_norm": number(above=0),
        "singleton": RAW_ZERO_ERROR,
    },
)
def advantage_gpg(c, x, o):
    batch = mpf(len(x.rewards.data))
    valid = [members for members in numbered(x.group) if not all_equal([x.rewards[i] for i in members])]
    count = sum(len(members) for members in valid)
    alpha = {
        "nonzero_rewards": batch / max(sum(reward != 0 for reward in x.rewards.data), 1),
        "valid_groups": batch / count if count else mpf(0),
        "one": mpf(1),
    }[o.alpha]

    def of_group(members):
        rewards = [x.rewards[i] for i in members]
        values = [singleton(rewards[0], o)] if len(rewards) == 1 else centred(rewards)
        return [alpha * value / o.f_norm for value in values]

    return {"advantages": by_group(x, of_group)}


@formula(
    "advantage.pass_at_k",
    inputs=REWARDS_OF_GROUPS,
    options={"std": choice("sample", "population", "none"), "eps": number(least=0)},
)
def advantage_pass_at_k(c, x, o):
    def of_group(members):
        rewards = [x.rewards[i] for i in members]
        if len(rewards) == 1:
            raise Fault("group-size", "a group of one")
        best, second = sorted(rewards, reverse=True)[:2]
        if best == second:
            return [mpf(0)] * len(rewards)
        divisor = mpf(1) if o.std == "none" else deviation(rewards, o.std) + o.eps
        return [(best - second) / divisor if reward == best else mpf(0) for reward in rewards]

    return {"advantages": by_group(x, of_group)}


# gae ------------------------------------------------------------------------------------------------------------------

GAE_INPUTS = {"rewards": data("BT"), "values": stops("BT"), "response_mask": mask("BT")}
TD_OPTIONS = {"gamma": number(least=0, most=1), "mask_mode": choice("carry", "none")}


def steps(x, mask_mode):
    """The steps of the recursion of each sequence: slot, reward, value."""
    kept = x.response_mask
    for b in range(kept.shape[0]):
        row = []
        for t in range(kept.shape[1]):
            if kept[b, t]:
                row.append(((b, t), x.rewards[b, t], x.values[b, t]))
            elif mask_mode == "none":
                row.append(((b, t), mpf(0), mpf(0)))
        yield row


def temporal_differences(row, gamma):
    following = [value for _, _, value in row[1:]] + [mpf(0)]
    return [reward + gamma * after - value for (_, reward, value), after in zip(row, following)]


@formula("advantage.td_error", inputs=GAE_INPUTS, options=TD_OPTIONS, masked_by="response_mask")
def advantage_td_error(c, x, o):
    deltas = {}
    for row in steps(x, o.mask_mode):
        deltas.update(zip([at for at, _, _ in row], temporal_differences(row, o.gamma)))
    return {"td_error": spread(x.response_mask, deltas)}


@formula(
    "advantage.gae",
    inputs=GAE_INPUTS,
    options={**TD_OPTIONS, "lam": number(least=0, most=1), **WHITEN_OPTIONS},
    masked_by="response_mask",
)
def advantage_gae(c, x, o):
    kept = x.response_mask
    advantages = estimated(x, o)
    returns = {at: advantages[at] + x.values[at] for at in kept_at(kept)}
    tokens = kept_at(kept)
    return {
        "advantages": spread(kept, dict(zip(tokens, whitened([advantages[at] for at in tokens], o)))),
        "returns": spread(kept, returns),
    }


def estimated(x, o):
    """The advantages of GAE before whitening, by slot."""
    advantages = {}
    for row in steps(x, o.mask_mode):
        after = mpf(0)
        for (at, _, _), delta in reversed(list(zip(row, temporal_differences(row, o.gamma)))):
            after = advantages[at] = delta + o.gamma * o.lam * after
    return advantages


# filter ---------------------------------------------------------------------------------------------------------------


def grpo_only(value):
    if value in ("gae", "rloo", "reinforce_plus_plus", "remax"):
        raise Fault("unsupported", f"adv_estimator {value}")
    return choice("grpo")(value)


@formula(
    "advantage.filter",
    inputs=REWARDS_OF_GROUPS,
    options={
        "keep_pos_ratio": number(least=0, most=1),
        "keep_neg_ratio": number(least=0, most=1),
        "compute_new_adv": flag,
        "eps": number(least=0),
        "singleton": RAW_ZERO_ERROR,
        "adv_estimator": grpo_only,
    },
)
def advantage_filter(c, x, o):
    count = len(x.rewards.data)
    original, advantages, kept = [None] * count, [mpf(0)] * count, [mpf(0)] * count

    def normalised(rewards):
        if all_equal(rewards) or deviation(rewards, "sample") < o.eps:
            return [mpf(0)] * len(rewards)
        return [d / deviation(rewards, "sample") for d in centred(rewards)]

    for members in numbered(x.group):
        rewards = [x.rewards[i] for i in members]
        if len(members) == 1:
            first = [singleton(rewards[0], o)]
            signs = [mp.sign(first[0])]
        else:
            first = normalised(rewards)
            flat = all_equal(rewards) or deviation(rewards, "sample") < o.eps
            total = mp.fsum(rewards)
            signs = [0 if flat else mp.sign(len(rewards) * reward - total) for reward in rewards]
        for i, advantage in zip(members, first):
            original[i] = advantage
        staying = [i for i, sign in zip(members, signs) if sign == 0]
        # sorted() is stable, so of equal rewards the earlier one comes first on both sides.
        best = sorted((i for i, sign in zip(members, signs) if sign > 0), key=lambda i: -x.rewards[i])
        worst = sorted((i for i, sign in zip(members, signs) if sign < 0), key=lambda i: x.rewards[i])
        staying += best[: how_many(len(best), o.keep_pos_ratio)] + worst[: how_many(len(worst), o.keep_neg_ratio)]
        staying.sort()
        renewed = o.compute_new_adv and len(staying) >= 2 and not o.keep_pos_ratio == o.keep_neg_ratio == 1
        final = normalised([x.rewards[i] for i in staying]) if renewed else [original[i] for i in staying]
        for i, advantage in zip(staying, final):
            advantages[i], kept[i] = advantage, mpf(1)
    arrays = {"advantages": advantages, "advantages_original": original, "kept": kept}
    return {key: Array((count,), values) for key, values in arrays.items()}


def how_many(count, ratio):
    # The clause asks for the product of double precision.
    return 0 if ratio == 0 else min(count, max(1, math.floor(count * float(ratio))))


# group_ppo ------------------------------------------------------------------------------------------------------------


@formula(
    "advantage.group_ppo",
    inputs={
        "rewards": data("BT"),
        "values": data("BT"),
        "logp": data("BT"),
        "logp_old": data("BT"),
        "response_mask": mask("BT"),
    },
    options={
        "group_variance_threshold": number(above=0),
        "group_max_size": optional(whole(least=2)),
        "group_epsilon": number(least=0),
        "adaptive_threshold": flag,
        "threshold_lr": number(least=0, most=1),
        "min_threshold": number(above=0),
        "max_threshold": number(),
        "group_score": choice("paper", "gp2"),
        "group_g": choice("log_ratio", "ratio_minus_one"),
        "group_gate": number(least=0),
        "group_counter": choice("group", "sequence"),
        "group_adv": choice("one_step", "gae"),
        "endpoint_return": choice("segment", "prefix", "gae"),
        "gamma": number(least=0, most=1),
        "lam": number(least=0, most=1),
    },
    masked_by="response_mask",
)
def advantage_group_ppo(c, x, o):
    if o.max_threshold < o.min_threshold:
        raise Fault("option", "max_threshold is below min_threshold")
    kept = x.response_mask
    tokens = kept_at(kept)
    gae = estimated(x, o.with_(mask_mode="carry"))
    estimate = gae if o.group_adv == "gae" else {at: x.rewards[at] - x.values[at] for at in tokens}
    endpoints, returns, quotients = [], {}, []
    for b in range(kept.shape[0]):
        response = [at for at in tokens if at[0] == b]
        opened = 0
        for t, at in enumerate(response):
            run = response[opened : t + 1]
            r_ppo, r_grpo, same = scores(c, x, o, response, opened, t, estimate)
            n = len(run) if o.group_counter == "group" else t + 1
            if same:
                enough = (n - o.group_variance_threshold) * r_ppo + n * o.group_epsilon >= 0
            else:
                enough = n * (r_ppo + o.group_epsilon) >= o.group_variance_threshold * r_grpo
            by_score = r_ppo > o.group_gate and enough
            if by_score:
                quotients.append(r_grpo / (r_ppo + o.group_epsilon))
            if by_score or len(run) == o.group_max_size or t == len(response) - 1:
                endpoints.append(at)
                if o.endpoint_return == "gae":
                    returns[at] = gae[at] + x.values[at]
                else:
                    counted = run if o.endpoint_return == "segment" else response[: t + 1]
                    returns[at] = mp.fsum(x.rewards[s] for s in counted)
                opened = t + 1
    advantages = {at: returns[at] - x.values[at] if at in returns else mpf(0) for at in tokens}
    threshold = o.group_variance_threshold
    if o.adaptive_threshold and quotients:
        threshold = threshold + o.threshold_lr * (mean(quotients) - threshold)
        threshold = min(max(threshold, o.min_threshold), o.max_threshold)
    ends, count = len(endpoints), len(tokens)
    compression = mpf(count - ends) / count if count else mpf(0)
    return {
        "endpoints": spread(kept, {at: mpf(at in returns) for at in tokens}),
        "advantages": spread(kept, advantages),
        "returns": spread(kept, {at: advantages[at] + x.values[at] for at in tokens}),
        "threshold": scalar(threshold),
        "compression_ratio": scalar(compression),
        "efficiency_gain": scalar(mpf(count) / ends if count else mpf(1)),
        "algorithm_effectiveness": scalar(max(mpf(0), compression - mpf(1) / 10) / (mpf(9) / 10)),
        "total_endpoints": scalar(mpf(ends)),
        "sparse": scalar(mpf(2 * ends < count)),
    }


def scores(c, x, o, response, opened, t, estimate):
    """The two scores of the open run at its last token, and whether they are one expression."""

    def size(at):
        d = x.logp[at] - x.logp_old[at]
        return d if o.group_g == "log_ratio" else c.exp(d) - 1

    run, a_t = response[opened : t + 1], estimate[response[t]]
    if o.group_score == "paper":
        r_ppo = mp.fsum(estimate[at] * size(at) for at in run) ** 2 / len(response)
        r_grpo = mp.fsum(size(at) for at in run) ** 2 * a_t**2 / len(response)
        same = len(run) == 1
    else:
        r_ppo = mp.fsum((estimate[at] * size(at)) ** 2 for at in run) / len(response)
        growth = mp.fprod(1 + size(at) ** 2 for at in response[1 : t + 1])
        r_grpo = size(response[0]) ** 2 * growth * a_t**2 / len(response)
        same = t == 0
    return r_ppo, r_ppo if same else r_grpo, same


# logprob --------------------------------------------------------------------------------------------------------------


@formula(
    "logprob.token",
    inputs={"logits": flows("BTV", minus_infinity=True), "tokens": wholes("BT")},
    options={"temperature": number(above=0)},
)
def logprob_token(c, x, o):
    def logp(b, t):
        drawn, z = x.tokens[b, t], tempered(x, o, b, t)
        if not 0 <= drawn < len(z):
            raise Fault("index", f"token {drawn}")
        return z[drawn] - log_sum_exp(z)

    return {"logp": table(x.tokens.shape, logp), "entropy": entropy(x, o)}


def tempered(x, o, b, t):
    return [x.logits[b, t, v] / o.temperature for v in range(x.logits.shape[2])]


def entropy(x, o):
    def of_token(b, t):
        z = tempered(x, o, b, t)
        log_sum = log_sum_exp(z)
        return log_sum - mp.fsum(mp.exp(zv - log_sum) * zv for zv in z if zv != -INF)

    return table(x.logits.shape[:2], of_token)


def log_sum_exp(z):
    """The shift is a constant: it cancels."""
    possible = [zv for zv in z if zv != -INF]
    if not possible:
        raise Fault("input", "a position where every entry is ruled out")
    top = mpf(max(possible))
    return top + mp.log(mp.fsum(mp.exp(zv - top) for zv in possible))


@formula(
    "logprob.entropy",
    inputs={"logits": flows("BTV", minus_infinity=True)},
    options={"temperature": number(above=0)},
)
def logprob_entropy(c, x, o):
    return {"entropy": entropy(x, o)}


@formula(
    "logprob.ratio",
    inputs={"logp": flows("BT"), "logp_old": stops("BT")},
    options={"log_ratio_clamp": optional(number(above=0))},
)
def logprob_ratio(c, x, o):
    return {"ratio": table(x.logp.shape, lambda *at: c.exp(log_ratio(c, x, o, at)))}


def log_ratio(c, x, o, at):
    return c.within(x.logp[at] - c.stop(x.logp_old[at]), o.log_ratio_clamp)


@formula(
    "logprob.sequence_ratio",
    inputs={"logp": flows("BT"), "logp_old": stops("BT"), "response_mask": mask("BT")},
    options={"level": choice("mean", "sum"), "log_ratio_clamp": optional(number(above=0))},
    masked_by="response_mask",
)
def logprob_sequence_ratio(c, x, o):
    def ratio(b):
        log_ratios = sequence_log_ratios(c, x, b)
        if not log_ratios:
            return mpf(1)
        log_ratio = mean(log_ratios) if o.level == "mean" else mp.fsum(log_ratios)
        return c.exp(c.within(log_ratio, o.log_ratio_clamp))

    return {"ratio": table(x.logp.shape[:1], ratio)}


def sequence_log_ratios(c, x, b):
    return [x.logp[b, t] - c.stop(x.logp_old[b, t]) for t in tokens_of(x.response_mask, b)]


def tokens_of(kept, b):
    return [t for t in range(kept.shape[1]) if kept[b, t]]


# objective ------------------------------------------------------------------------------------------------------------

RATIO_OPTIONS = {"log_ratio_clamp": optional(number(above=0))}
CLIP_OPTIONS = {
    "clip_ratio_low": number(least=0, most=1),
    "clip_ratio_high": number(least=0),
    "clip_ratio_c": optional(number(above=1)),
    **RATIO_OPTIONS,
}
POLICY_INPUTS = {
    "logp": flows("BT"),
    "logp_old": stops("BT"),
    "advantages": stops("B|BT"),
    "response_mask": mask("BT"),
}


@formula("objective.clip", inputs=POLICY_INPUTS, options=CLIP_OPTIONS, masked_by="response_mask")
def objective_clip(c, x, o):
    def loss(b, t):
        if not x.response_mask[b, t]:
            return mpf(0)
        ratio = c.exp(log_ratio(c, x, o, (b, t)))
        advantage = c.stop(token(x.advantages, b, t))
        unclipped = -clipped_gain(c, ratio, advantage, o)
        if o.clip_ratio_c is not None and c.decide(advantage < 0):
            return c.minimum(unclipped, -o.clip_ratio_c * advantage)
        return unclipped

    losses = table(x.logp.shape, loss)
    metrics = policy_metrics(c, x, o)
    return {"loss": losses, **{key: metrics[key] for key in ("clip_fraction", "clip_fraction_lower", "ppo_kl")}}


def clipped_gain(c, ratio, advantage, o):
    clipped = c.clip(ratio, 1 - o.clip_ratio_low, 1 + o.clip_ratio_high)
    return c.minimum(ratio * advantage, clipped * advantage)


AGGREGATE_OPTIONS = {
    "loss_agg_mode": choice(
        "token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"
    ),
    "loss_scale_factor": optional(number(above=0)),
    "batch_num_tokens": optional(number(above=0)),
    "global_batch_size": optional(number(above=0)),
    "dp_size": number(above=0),
}
KL_NAMES = ("k1", "abs", "k2", "k3", "kl", "mse", "low_var_kl")
KL_PENALTY = choice(*KL_NAMES, *(name + "+" for name in KL_NAMES))


@formula(
    "objective.actor_loss",
    inputs={
        "logp": flows("BT"),
        "logp_old": stops("BT"),
        "logp_ref": stops("BT", optional=True),
        "advantages": stops("B|BT"),
        "response_mask": mask("BT"),
        "group_endpoints": mask("BT", optional=True),
        "entropy": flows("BT", optional=True),
    },
    options={
        **CLIP_OPTIONS,
        "kl_ratio_weight": flag,
        "kl_loss_type": KL_PENALTY,
        "kl_input_clamp": optional(number(above=0)),
        "kl_output_clamp": optional(number(above=0)),
        "kl_loss_coef": number(),
        "entropy_coeff": number(),
        **AGGREGATE_OPTIONS,
        "gradient_accumulation_steps": number(least=1),
    },
    masked_by="response_mask",
    unread=lambda o: ["logp_ref"] * (o.kl_loss_coef == 0) + ["entropy"] * (o.entropy_coeff == 0),
)
def objective_actor_loss(c, x, o):
    kept = x.response_mask
    if x.group_endpoints is not None:
        kept = table(kept.shape, lambda *at: x.response_mask[at] and x.group_endpoints[at])
        x = x.with_(response_mask=kept)
    policy = aggregate(objective_clip(c, x, o)["loss"], kept, o)
    loss, kl, entropy = policy, mpf(0), mpf(0)
    if o.kl_loss_coef != 0:
        if x.logp_ref is None:
            raise Fault("input", "logp_ref is needed")
        kl_options = Names(
            {"kl_penalty": o.kl_loss_type, "input_clamp": o.kl_input_clamp, "output_clamp": o.kl_output_clamp}
        )

        def penalty(*at):
            if not kept[at]:
                return mpf(0)
            estimate = kl_of_token(c, x.logp[at], x.logp_ref[at], kl_options)
            return estimate * c.exp(log_ratio(c, x, o, at)) if o.kl_ratio_weight else estimate

        kl = aggregate(table(x.logp.shape, penalty), kept, o)
        loss += o.kl_loss_coef * kl
    if o.entropy_coeff != 0:
        if x.entropy is None:
            raise Fault("input", "entropy is needed")
        entropy = aggregate(x.entropy, kept, o)
        loss -= o.entropy_coeff * entropy
    outputs = {"loss": loss / o.gradient_accumulation_steps, "policy_loss": policy, "kl_loss": kl}
    return {key: scalar(value) for key, value in {**outputs, "entropy_loss": entropy}.items()}


@formula("objective.policy_gradient", inputs={"logp": flows("BT"), "advantages": stops("B|BT")})
def objective_policy_gradient(c, x, o):
    return {"loss": table(x.logp.shape, lambda b, t: -c.stop(token(x.advantages, b, t)) * x.logp[b, t])}


@formula(
    "objective.reinforce_with_baseline",
    inputs={"logp": flows("BT"), "rewards": stops("B"), "baselines": stops("B")},
)
def objective_reinforce_with_baseline(c, x, o):
    return {"loss": table(x.logp.shape, lambda b, t: -c.stop(x.rewards[b] - x.baselines[b]) * x.logp[b, t])}


@formula(
    "objective.off_policy",
    inputs={"logp": flows("BT"), "logp_old": stops("BT"), "advantages": stops("B|BT")},
    options=RATIO_OPTIONS,
)
def objective_off_policy(c, x, o):
    def loss(b, t):
        return -c.exp(log_ratio(c, x, o, (b, t))) * c.stop(token(x.advantages, b, t))

    return {"loss": table(x.logp.shape, loss)}


LOSS_TYPES = {
    "no_baseline": ("raw_rewards",),
    "reinforce_with_baseline": ("advantages",),
    "grpo_clip": ("logp_old", "advantages"),
}


@formula(
    "objective.dispatch",
    inputs={
        "logp": flows("BT"),
        "logp_old": stops("BT", optional=True),
        "raw_rewards": stops("B", optional=True),
        "advantages": stops("B|BT", optional=True),
    },
    options={
        "loss_type": choice(*LOSS_TYPES),
        "cliprange": number(least=0, most=1),
    },
    unread=lambda o: {"logp_old", "raw_rewards", "advantages"} - set(LOSS_TYPES[o.loss_type]),
)
def objective_dispatch(c, x, o):
    for name in LOSS_TYPES[o.loss_type]:
        if getattr(x, name) is None:
            raise Fault("input", f"{name} is needed")
    if o.loss_type == "grpo_clip":
        everything = table(x.logp.shape, lambda *at: True)
        clip = {"clip_ratio_low": o.cliprange, "clip_ratio_high": o.cliprange}
        off = {"clip_ratio_c": None, "log_ratio_clamp": None}
        answer = objective_clip(c, x.with_(response_mask=everything), Names({**clip, **off}))
        return {key: answer[key] for key in ("loss", "clip_fraction")}
    advantages = x.raw_rewards if o.loss_type == "no_baseline" else x.advantages
    return {**objective_policy_gradient(c, x.with_(advantages=advantages), o), "clip_fraction": scalar(mpf(0))}


@formula(
    "objective.gspo",
    inputs=POLICY_INPUTS,
    options={
        "clip_ratio_low": number(least=0, most=1),
        "clip_ratio_high": number(least=0),
        "log_ratio_max": optional(number(above=0)),
        "importance_sampling_level": choice("sequence", "sequence_token", "sequence_sum"),
    },
    masked_by="response_mask",
)
def objective_gspo(c, x, o):
    kept = x.response_mask
    ratios, bounded = [], []
    for b in range(kept.shape[0]):
        log_ratios = sequence_log_ratios(c, x, b)
        if not log_ratios:
            ratios.append(mpf(1))
            bounded.append(False)
            continue
        level = mp.fsum(log_ratios) if o.importance_sampling_level == "sequence_sum" else mean(log_ratios)
        bounded.append(o.log_ratio_max is not None and c.decide(level > o.log_ratio_max))
        ratios.append(c.exp(o.log_ratio_max if bounded[b] else level))

    def loss(b, t):
        if not kept[b, t]:
            return mpf(0)
        ratio = ratios[b]
        if o.importance_sampling_level == "sequence_token":
            own = mpf(1) if bounded[b] else mp.exp(x.logp[b, t] - c.stop(x.logp[b, t]))
            ratio = c.stop(ratio) * own
        return -clipped_gain(c, ratio, c.stop(token(x.advantages, b, t)), o)

    losses = table(kept.shape, loss)
    clipped = [gain_clipped(ratios[b], token(x.advantages, b, t), o) for b, t in kept_at(kept)]
    return {
        "loss": losses,
        "ratio": Array(kept.shape[:1], ratios),
        "clip_fraction": scalar(mean(clipped) if clipped else mpf(0)),
    }


@formula(
    "objective.cispo",
    inputs=POLICY_INPUTS,
    options={
        "clip_ratio_low": optional(number(least=0, most=1)),
        "clip_ratio_high": number(least=0),
        "cispo_bound": choice("one_plus_eps", "absolute"),
        **RATIO_OPTIONS,
    },
    masked_by="response_mask",
)
def objective_cispo(c, x, o):
    def loss(b, t):
        if not x.response_mask[b, t]:
            return mpf(0)
        ratio = c.exp(log_ratio(c, x, o, (b, t)))
        raised = ratio if o.clip_ratio_low is None else c.maximum(ratio, 1 - o.clip_ratio_low)
        upper = o.clip_ratio_high + (1 if o.cispo_bound == "one_plus_eps" else 0)
        weight = c.stop(c.minimum(raised, upper) * token(x.advantages, b, t))
        return -weight * x.logp[b, t]

    return {"loss": table(x.logp.shape, loss)}


@formula(
    "objective.gmpo",
    inputs={**POLICY_INPUTS, "advantages": stops("B")},
    options={"clip_ratio_low": number(least=0), "clip_ratio_high": number(least=0)},
    masked_by="response_mask",
)
def objective_gmpo(c, x, o):
    def loss(b):
        log_ratios = sequence_log_ratios(c, x, b)
        if not log_ratios:
            return mpf(0)
        advantage = c.stop(x.advantages[b])
        if c.decide(advantage > 0):
            log_ratios = [c.minimum(d, o.clip_ratio_high) for d in log_ratios]
        elif c.decide(advantage < 0):
            log_ratios = [c.maximum(d, -o.clip_ratio_low) for d in log_ratios]
        else:
            return mpf(0)
        return -advantage * c.exp(mean(log_ratios))

    return {"loss": table(x.logp.shape[:1], loss)}


@formula(
    "objective.sapo",
    inputs=POLICY_INPUTS,
    options={"tau_pos": number(above=0), "tau_neg": number(above=0), **RATIO_OPTIONS},
    masked_by="response_mask",
)
def objective_sapo(c, x, o):
    def loss(b, t):
        if not x.response_mask[b, t]:
            return mpf(0)
        advantage = c.stop(token(x.advantages, b, t))
        if c.decide(advantage == 0):
            return mpf(0)
        tau = o.tau_pos if c.decide(advantage > 0) else o.tau_neg
        ratio = c.exp(log_ratio(c, x, o, (b, t)))
        return -4 / tau * sigmoid(c, tau * (ratio - 1)) * advantage

    return {"loss": table(x.logp.shape, loss)}


def sigmoid(c, x):
    # Beyond this, e^-x is no number that a machine can hold.
    if c.decide(x > 10**6):
        return mpf(1)
    return 1 / (1 + mp.exp(-x))


# rollout --------------------------------------------------------------------------------------------------------------

ROLLOUT_INPUTS = {"logp_old": stops("BT"), "logp_rollout": stops("BT"), "response_mask": mask("BT")}


@formula(
    "rollout.weights",
    inputs=ROLLOUT_INPUTS,
    options={
        "rollout_is": choice("token", "sequence"),
        "rollout_is_mode": choice("truncate", "mask"),
        "rollout_is_threshold": number(above=0),
        "rollout_is_threshold_lower": optional(number(least=0)),
        "safety_bound": optional(number(above=0)),
        "batch_normalize": flag,
    },
    masked_by="response_mask",
)
def rollout_weights(c, x, o):
    kept, lower, upper = x.response_mask, o.rollout_is_threshold_lower, o.rollout_is_threshold
    if lower is not None and lower > upper:
        raise Fault("option", "rollout_is_threshold_lower is above rollout_is_threshold")

    def weight(log_weight):
        rho = c.exp(c.within(log_weight, o.safety_bound))
        if o.rollout_is_mode == "truncate":
            return min(rho if lower is None else max(rho, lower), upper)
        return rho if rho <= upper and (lower is None or rho >= lower) else mpf(0)

    d = {at: x.logp_old[at] - x.logp_rollout[at] for at in kept_at(kept)}
    if o.rollout_is == "token":
        weights = {at: weight(log_weight) for at, log_weight in d.items()}
        counted = list(weights.values())
    else:
        sequences = {b: weight(mp.fsum(d[b, t] for t in tokens_of(kept, b))) for b in {at[0] for at in d}}
        weights = {at: sequences[at[0]] for at in d}
        counted = list(sequences.values())
    if o.batch_normalize and any(counted):
        weights = {at: value / mean(counted) for at, value in weights.items()}
    return {"weights": spread(kept, weights)}


@formula(
    "rollout.rejection",
    inputs=ROLLOUT_INPUTS,
    options={
        "rollout_rs_level": choice("token", "seq_sum", "seq_mean", "seq_max"),
        "rollout_rs_estimator": choice("k1", "k2", "k3"),
        "rollout_rs_threshold": number(above=0),
        "rollout_rs_threshold_lower": optional(number(above=0)),
        "rs_k1_orientation": choice("inverse", "direct"),
        "safety_bound": optional(number(above=0)),
    },
    masked_by="response_mask",
)
def rollout_rejection(c, x, o):
    kept, lower, upper = x.response_mask, o.rollout_rs_threshold_lower, o.rollout_rs_threshold
    if lower is not None and lower > upper:
        raise Fault("option", "rollout_rs_threshold_lower is above rollout_rs_threshold")
    if o.rollout_rs_estimator == "k1":
        if o.rollout_rs_level == "seq_max":
            raise Fault("unsupported", "seq_max with k1")
        if lower is None and upper < 1:
            raise Fault("option", "rollout_rs_threshold is below 1")
        least, most = -mp.log(upper) if lower is None else mp.log(lower), mp.log(upper)
    else:
        if lower is not None:
            raise Fault("unsupported", "a lower bound with " + o.rollout_rs_estimator)
        least, most = -INF, upper

    def divergence(at):
        d = c.within(x.logp_old[at] - x.logp_rollout[at], o.safety_bound)
        if o.rollout_rs_estimator == "k1":
            return -d if o.rs_k1_orientation == "inverse" else d
        return d * d / 2 if o.rollout_rs_estimator == "k2" else c.exp(d) - 1 - d

    reduce = {"seq_sum": mp.fsum, "seq_mean": mean, "seq_max": max}.get(o.rollout_rs_level)
    stays = {}
    for b in range(kept.shape[0]):
        tokens = [(b, t) for t in tokens_of(kept, b)]
        statistics = [divergence(at) for at in tokens]
        if reduce and tokens:
            statistics = [reduce(statistics)] * len(tokens)
        stays.update((at, mpf(least <= statistic <= most)) for at, statistic in zip(tokens, statistics))
    rejected = 1 - mean(stays.values()) if stays else mpf(0)
    return {"response_mask": spread(kept, stays), "rejected_fraction": scalar(rejected)}


# kl -------------------------------------------------------------------------------------------------------------------


KL_OPTIONS = {
    "kl_penalty": KL_PENALTY,
    "input_clamp": optional(number(above=0)),
    "output_clamp": optional(number(above=0)),
}


@formula("kl.estimate", inputs={"logp": flows("BT"), "logp_ref": stops("BT")}, options=KL_OPTIONS)
def kl_estimate(c, x, o):
    return {"kl": table(x.logp.shape, lambda *at: kl_of_token(c, x.logp[at], x.logp_ref[at], o))}


def kl_of_token(c, logp, logp_ref, o):
    unclamped = logp - c.stop(logp_ref)
    d = c.within(unclamped, o.input_clamp)
    name = o.kl_penalty.removesuffix("+")
    if name in ("k1", "kl"):
        estimate = d
    elif name == "abs":
        estimate = c.absolute(d)
    elif name in ("k2", "mse"):
        estimate = d * d / 2
    else:
        estimate = c.exp(-d) + d - 1
    estimate = c.within(estimate, o.output_clamp)
    return c.straight_through(estimate, unclamped**2 / 2) if o.kl_penalty.endswith("+") else estimate


@formula(
    "kl.full",
    inputs={"logits": flows("BTV", minus_infinity=True), "logits_ref": stops("BTV", minus_infinity=True)},
)
def kl_full(c, x, o):
    def of_token(b, t):
        tokens = range(x.logits.shape[2])
        z, z_ref = [x.logits[b, t, v] for v in tokens], [c.stop(x.logits_ref[b, t, v]) for v in tokens]
        if any(zv != -INF and zv_ref == -INF for zv, zv_ref in zip(z, z_ref)):
            raise Fault("input", "a token that only the reference rules out")
        shift, shift_ref = log_sum_exp(z), log_sum_exp(z_ref)
        terms = [(zv - shift, zv_ref - shift_ref) for zv, zv_ref in zip(z, z_ref) if zv != -INF]
        return mp.fsum(mp.exp(log_p) * (log_p - log_q) for log_p, log_q in terms)

    return {"kl": table(x.logits.shape[:2], of_token)}


@formula(
    "kl.in_reward",
    inputs={"scores": data("BT"), "logp": data("BT"), "logp_ref": data("BT"), "response_mask": mask("BT")},
    options={"kl_coef": number(), **KL_OPTIONS},
    masked_by="response_mask",
)
def kl_in_reward(c, x, o):
    kept = x.response_mask
    value_only = o.with_(kl_penalty=o.kl_penalty.removesuffix("+"))
    kl = {at: kl_of_token(c, x.logp[at], x.logp_ref[at], value_only) for at in kept_at(kept)}
    rows = [[kl[b, t] for t in tokens_of(kept, b)] for b in range(kept.shape[0])]
    means = [mean(row) for row in rows if row]
    return {
        "rewards": spread(kept, {at: x.scores[at] - o.kl_coef * value for at, value in kl.items()}),
        "current_kl": scalar(mean(means) if means else mpf(0)),
    }


@formula(
    "kl.controller",
    inputs={"kl_coef": data(""), "current_kl": data("", optional=True)},
    options={
        "type": choice("fixed", "adaptive"),
        "target_kl": number(above=0),
        "horizon": number(above=0),
        "n_steps": number(above=0),
    },
    unread=lambda o: ["current_kl"] * (o.type == "fixed"),
)
def kl_controller(c, x, o):
    if o.type == "fixed":
        return {"kl_coef": x.kl_coef}
    if x.current_kl is None:
        raise Fault("input", "current_kl is needed")
    error = c.within(x.current_kl[()] / o.target_kl - 1, mpf(1) / 5)
    return {"kl_coef": scalar(x.kl_coef[()] * (1 + error * o.n_steps / o.horizon))}


# aggregate ------------------------------------------------------------------------------------------------------------


@formula(
    "aggregate.loss",
    inputs={"loss": flows("BT"), "response_mask": mask("BT")},
    options=AGGREGATE_OPTIONS,
    masked_by="response_mask",
)
def aggregate_loss(c, x, o):
    return {"loss": scalar(aggregate(x.loss, x.response_mask, o))}


def aggregate(loss, kept, o):
    """`loss` is read where the mask keeps it, nowhere else."""
    batch, width = kept.shape
    rows = [[loss[b, t] for t in range(width) if kept[b, t]] for b in range(batch)]
    rows = [row for row in rows if row]
    if not rows:
        return mpf(0)
    tokens = o.batch_num_tokens if o.batch_num_tokens is not None else mpf(sum(len(row) for row in rows))
    sequences = o.global_batch_size if o.global_batch_size is not None else mpf(len(rows))
    total = mp.fsum(mp.fsum(row) for row in rows)
    if o.loss_agg_mode == "token-mean":
        value = total / tokens
    elif o.loss_agg_mode == "token-sum":
        value = total
    elif o.loss_agg_mode == "seq-mean-token-sum":
        value = total / sequences
    elif o.loss_agg_mode == "seq-mean-token-mean":
        value = mp.fsum(mean(row) for row in rows) / sequences
    else:
        scale = o.loss_scale_factor if o.loss_scale_factor is not None else mpf(width)
        value = total / (sequences * scale)
    return value * o.dp_size


@formula(
    "aggregate.micro_batches",
    inputs={"loss": flows("BT"), "response_mask": mask("BT"), "micro_batch": labels("B")},
    options={**AGGREGATE_OPTIONS, "micro_batch_scaling": choice("whole", "equal", "sequences")},
    masked_by="response_mask",
)
def aggregate_micro_batches(c, x, o):
    kept = x.response_mask
    parts, batch = numbered(x.micro_batch), kept.shape[0]
    counts = {}
    if o.micro_batch_scaling == "whole" and kept_at(kept):
        if o.batch_num_tokens is None:
            counts["batch_num_tokens"] = mpf(len(kept_at(kept)))
        if o.global_batch_size is None:
            counts["global_batch_size"] = mpf(len({b for b, _ in kept_at(kept)}))

    def part(members):
        own = table(kept.shape, lambda b, t: b in members and kept[b, t])
        value = aggregate(x.loss, own, o.with_(**counts))
        scale = {"whole": mpf(1), "equal": mpf(1) / len(parts), "sequences": mpf(len(members)) / batch}
        return value * scale[o.micro_batch_scaling]

    values = [part(members) for members in parts]
    return {"loss": scalar(mp.fsum(values)), "parts": Array((len(values),), values)}


# value ----------------------------------------------------------------------------------------------------------------


@formula(
    "value.clipped",
    inputs={"values": flows("BT"), "values_old": stops("BT"), "returns": stops("BT"), "response_mask": mask("BT")},
    options={"cliprange_value": optional(number(above=0)), "half": flag, **AGGREGATE_OPTIONS},
    masked_by="response_mask",
)
def value_clipped(c, x, o):
    losses, clipped = {}, []
    for at in kept_at(x.response_mask):
        value, old, target = x.values[at], c.stop(x.values_old[at]), c.stop(x.returns[at])
        error = (value - target) ** 2
        if o.cliprange_value is not None:
            limited = (c.clip(value, old - o.cliprange_value, old + o.cliprange_value) - target) ** 2
            clipped.append(c.stop(mpf(limited > error)))
            error = c.maximum(error, limited)
        losses[at] = error / 2 if o.half else error
    fraction = mean(clipped) if clipped else mpf(0)
    loss = aggregate(losses, x.response_mask, o)
    return {"loss": scalar(loss), "clip_fraction": scalar(fraction)}


# metrics --------------------------------------------------------------------------------------------------------------


@formula("metrics.policy", inputs=POLICY_INPUTS, options=CLIP_OPTIONS, masked_by="response_mask")
def metrics_policy(c, x, o):
    return policy_metrics(c, x, o)


def gain_clipped(ratio, advantage, o):
    above = ratio > 1 + o.clip_ratio_high and advantage > 0
    below = ratio < 1 - o.clip_ratio_low and advantage < 0
    return mpf(above or below)


def policy_metrics(c, x, o):
    clipped, lowered, kl, ratios = [], [], [], []
    for b, t in kept_at(x.response_mask):
        d = c.stop(log_ratio(c, x, o, (b, t)))
        ratio, advantage = c.stop(c.exp(d)), c.stop(token(x.advantages, b, t))
        clipped.append(gain_clipped(ratio, advantage, o))
        if o.clip_ratio_c is not None and advantage < 0:
            loss = -clipped_gain(Record(c.finite_range), ratio, advantage, o)
            lowered.append(mpf(-o.clip_ratio_c * advantage < loss))
        else:
            lowered.append(mpf(0))
        kl.append(-d)
        ratios.append(ratio)
    means = {"clip_fraction": clipped, "clip_fraction_lower": lowered, "ppo_kl": kl, "ratio_mean": ratios}
    return {key: scalar(mean(values) if values else mpf(0)) for key, values in means.items()}


def statistics(values):
    if not values:
        return {"mean": mpf(0), "std": mpf(0), "max": mpf(0), "min": mpf(0)}
    flat = all_equal(values)
    return {
        "mean": values[0] if flat else mean(values),
        "std": mpf(0) if flat else deviation(values, "sample"),
        "max": max(values),
        "min": min(values),
    }


@formula("metrics.rewards", inputs={"rewards": data("B")})
def metrics_rewards(c, x, o):
    return {key: scalar(value) for key, value in statistics(x.rewards.data).items()}


@formula(
    "metrics.advantages",
    inputs={
        "advantages": stops("B|BT"),
        "advantages_original": stops("B|BT"),
        "response_mask": mask("BT"),
        "kept": mask("B", optional=True),
    },
    options={"processed_excludes": choice("filtered", "zeros")},
    masked_by="response_mask",
)
def metrics_advantages(c, x, o):
    tokens = kept_at(x.response_mask)
    before = statistics([token(x.advantages_original, b, t) for b, t in tokens])
    if o.processed_excludes == "filtered":
        after = [token(x.advantages, b, t) for b, t in tokens if x.kept is None or x.kept[b]]
    else:
        after = [token(x.advantages, b, t) for b, t in tokens if token(x.advantages, b, t) != 0]
    outputs = {key: before[key] for key in ("mean", "max", "min")}
    outputs.update({"processed_" + key: value for key, value in statistics(after).items()})
    return {key: scalar(value) for key, value in outputs.items()}


@formula(
    "metrics.health",
    inputs={
        "kl_divergence": data(""),
        "ppo_ratio_clipped": data(""),
        "ppo_ratio_mean": data(""),
        "advantage_mean": data(""),
        "advantage_std": data(""),
    },
    options={
        "max_kl_divergence": number(above=0),
        "max_ppo_ratio_clipped": number(above=0),
        "near": number(above=0),
    },
)
def metrics_health(c, x, o):
    rules = {
        "kl_divergence_ok": x.kl_divergence[()] < o.max_kl_divergence,
        "ppo_ratio_clipped_ok": x.ppo_ratio_clipped[()] < o.max_ppo_ratio_clipped,
        "ppo_ratio_mean_ok": abs(x.ppo_ratio_mean[()] - 1) < o.near,
        "advantage_mean_ok": abs(x.advantage_mean[()]) < o.near,
        "advantage_std_ok": abs(x.advantage_std[()] - 1) < o.near,
    }
    return {key: scalar(mpf(holds)) for key, holds in {"healthy": all(rules.values()), **rules}.items()}


@formula(
    "metrics.pass_at_k", inputs={"num_samples": data("B"), "num_correct": data("B")}, options={"k": whole(least=1)}
)
def metrics_pass_at_k(c, x, o):
    def estimate(b):
        n, correct = x.num_samples[b], x.num_correct[b]
        if n != int(n) or correct != int(correct) or not 0 <= correct <= n or n > 2**24:
            raise Fault("input", f"{correct} correct of {n}")
        if n < o.k:
            raise Fault("group-size", f"{n} samples for k = {o.k}")
        n, correct = int(n), int(correct)
        factors = range(n - correct + 1, n + 1)
        return 1 - mp.fprod(mpf(max(i - o.k, 0)) / i for i in factors)

    return {"pass_at_k": table(x.num_samples.shape, estimate)}


# reward ---------------------------------------------------------------------------------------------------------------

NUMBER = re.compile(r"(?:(?<![0-9A-Za-z])-\$?)?[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?")
MARKED_NUMBER = re.compile(r"####[ \t$]*(" + NUMBER.pattern + ")")
RUN = re.compile(r"-?[0-9.,]+")
MARKED_RUN = re.compile(r"#### (" + RUN.pattern + ")")
LONE_NUMBER = re.compile(r"\$?(" + NUMBER.pattern + r")\.?")
BLANKS = " \t\n\r"


@formula(
    "reward.gsm8k",
    inputs={"response": texts("..."), "answer": texts("...")},
    options={
        "method": choice("strict", "flexible"),
        "compare": choice("number", "text"),
        "occurrence": choice("last", "first"),
        "tail_chars": optional(whole(least=1)),
    },
)
def reward_gsm8k(c, x, o):
    def reward(*at):
        wanted = wanted_answer(x.answer[at], o)
        response = x.response[at] if o.tail_chars is None else x.response[at][-o.tail_chars :]
        found = marked(response, o) if o.method == "strict" else unmarked(response, o)
        if not found:
            return mpf(0)
        answer = found[-1 if o.occurrence == "last" else 0]
        if o.compare == "text":
            return mpf((answer.replace(",", "") if o.method == "strict" else answer) == wanted.replace(",", ""))
        return mpf(number_value(answer) == number_value(wanted))

    return {"reward": table(x.response.shape, reward)}


def wanted_answer(text, o):
    candidates = marked(text, o) or unmarked(text, o)
    if not any(re.search("[0-9]", candidate) for candidate in candidates):
        raise Fault("input", "an answer without a number")
    return candidates[-1]


def marked(text, o):
    pattern = MARKED_NUMBER if o.compare == "number" else MARKED_RUN
    # Every place is tried, for in a row of five # a marker begins twice.
    found = [pattern.match(text, i) for i in range(len(text))]
    return [match.group(1) for match in found if match]


def unmarked(text, o):
    if o.compare == "number":
        return NUMBER.findall(text)
    return [run for run in RUN.findall(text) if run != "."]


def number_value(text):
    return Fraction(text.replace("$", "").replace(",", ""))


@formula("reward.r1_zero", inputs={"response": texts("..."), "answer": texts("...")})
def reward_r1_zero(c, x, o):
    def grade(*at):
        response = x.response[at]
        right = x.answer[at].rpartition("####")[2].strip(BLANKS)
        if not right:
            raise Fault("input", "an empty answer")
        if "</think> <answer>" not in response or "</answer>" not in response:
            return 0, 0
        found = boxed(response.rpartition("<answer>")[2].partition("</answer>")[0])
        return 1, int(found is not None and same_answer(found.strip(BLANKS), right))

    grades = [grade(*at) for at in indices(x.response.shape)]
    formats = Array(x.response.shape, [mpf(form) for form, _ in grades])
    answers = Array(x.response.shape, [mpf(answer) for _, answer in grades])
    return {"reward": answers, "format_reward": formats, "answer_reward": answers}


def boxed(text):
    """What the last box holds, None for a broken box, and the text itself without any."""
    _, box, rest = text.rpartition("\\boxed")
    if not box:
        return text
    if not rest.startswith("{"):
        return None
    depth = 0
    for i, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:i]
    return None


def same_answer(found, right):
    numbers = [LONE_NUMBER.fullmatch(text) for text in (found, right)]
    if all(numbers):
        return number_value(numbers[0].group(1)) == number_value(numbers[1].group(1))
    return found == right


@formula(
    "reward.overlong",
    inputs={"lengths": data("B")},
    options={
        "max_response_length": number(above=0),
        "buffer": number(above=0),
        "penalty_factor": number(least=0),
        "floor": optional(number(most=0)),
    },
)
def reward_overlong(c, x, o):
    if o.buffer > o.max_response_length:
        raise Fault("option", "buffer is above max_response_length")

    def penalty(b):
        value = min(mpf(0), -(x.lengths[b] - (o.max_response_length - o.buffer)) / o.buffer * o.penalty_factor)
        return value if o.floor is None else max(value, o.floor)

    return {"penalty": table(x.lengths.shape, penalty)}


# sampling -------------------------------------------------------------------------------------------------------------


@formula("sampling.repeat", inputs={"index": data("B")}, options={"n": whole(least=1, most=65536), "interleave": flag})
def sampling_repeat(c, x, o):
    batch = len(x.index.data)
    entries = [x.index[i // o.n if o.interleave else i % batch] for i in range(batch * o.n)]
    return {"repeated": Array((len(entries),), entries)}


@formula(
    "sampling.dynamic",
    inputs=REWARDS_OF_GROUPS,
    options={
        "rule": choice("differ", "mean_in_range"),
        "low": number(),
        "high": number(),
        "singleton": choice("keep", "drop"),
    },
)
def sampling_dynamic(c, x, o):
    if o.low >= o.high:
        raise Fault("option", "low is not below high")

    def keeps(rewards):
        if o.rule == "mean_in_range":
            return o.low < (rewards[0] if all_equal(rewards) else mean(rewards)) < o.high
        return o.singleton == "keep" if len(rewards) == 1 else not all_equal(rewards)

    groups = numbered(x.group)
    kept = [members for members in groups if keeps([x.rewards[i] for i in members])]
    keep = by_group(x, lambda members: [mpf(members in kept)] * len(members))
    return {"keep": keep, "kept_groups": scalar(mpf(len(kept)))}


@formula(
    "sampling.resample",
    inputs=REWARDS_OF_GROUPS,
    options={"group_size": whole(least=1), "max_samples": whole(least=1), "tolerance": number(least=0)},
)
def sampling_resample(c, x, o):
    if o.max_samples < o.group_size:
        raise Fault("option", "max_samples is below group_size")
    unfinished = []

    def count_as_equal(rewards):
        return all_equal(rewards) or deviation(rewards, "sample") < o.tolerance

    def of_group(members):
        rewards = [x.rewards[i] for i in members]
        taken = 0
        while taken < o.group_size or (taken < o.max_samples and count_as_equal(rewards[:taken])):
            if taken == len(rewards):
                unfinished.append(members)
                break
            taken += 1
        return [mpf(place < taken) for place in range(len(rewards))]

    return {"taken": by_group(x, of_group), "unfinished": scalar(mpf(len(unfinished)))}


@formula(
    "sampling.distribution",
    inputs={"logits": data("BV", minus_infinity=True)},
    options={
        "temperature": number(least=0),
        "top_k": optional(whole(least=1)),
        "top_p": optional(number(above=0, most=1)),
    },
)
def sampling_distribution(c, x, o):
    def row(b):
        logits = [x.logits[b, v] for v in range(x.logits.shape[1])]
        ranked = sorted((v for v in range(len(logits)) if logits[v] != -INF), key=lambda v: (-logits[v], v))
        if not ranked:
            raise Fault("input", "a row in which every token is ruled out")
        if o.temperature == 0:
            ranked = ranked[:1]
        elif o.top_k is not None:
            ranked = ranked[: o.top_k]
        # At temperature 0 one token is left, of whatever weight.
        weights = [mp.exp((logits[v] - logits[ranked[0]]) / (o.temperature or 1)) for v in ranked]
        total = mp.fsum(weights)
        if o.top_p is not None and o.top_p < 1:
            stays = [i for i in range(len(ranked)) if mp.fsum(weights[:i]) < o.top_p * total]
            ranked, weights = ranked[: len(stays)], weights[: len(stays)]
            total = mp.fsum(weights)
        probs = dict(zip(ranked, (weight / total for weight in weights)))
        return [probs.get(v, mpf(0)) for v in range(len(logits))]

    return {"probs": Array(x.logits.shape, [prob for b in range(x.logits.shape[0]) for prob in row(b)])}


# optim ----------------------------------------------------------------------------------------------------------------


def whole_entry(value, least, name):
    if value != mp.floor(value) or value < least:
        raise Fault("input", f"{name} is {value}")
    return int(value)


def quotient_of_doubles(a, b):
    """Division by 0 as doubles have it."""
    if b != 0:
        return a / b
    return NAN if a == 0 else INF * mp.sign(a)


@formula(
    "optim.adamw",
    inputs={"param": data("..."), "grad": data("..."), "m": data("..."), "v": data("..."), "step": data("")},
    options={
        "lr": number(least=0),
        "beta1": number(least=0, below=1),
        "beta2": number(least=0, below=1),
        "eps": number(least=0),
        "weight_decay": number(least=0),
    },
)
def optim_adamw(c, x, o):
    step = whole_entry(x.step[()], 1, "step")
    if any(value < 0 for value in x.v.data):
        raise Fault("input", "v is negative")
    m = [o.beta1 * old + (1 - o.beta1) * grad for old, grad in zip(x.m.data, x.grad.data)]
    v = [o.beta2 * old + (1 - o.beta2) * grad**2 for old, grad in zip(x.v.data, x.grad.data)]
    updates = [
        quotient_of_doubles(mean_of / (1 - o.beta1**step), mp.sqrt(square / (1 - o.beta2**step)) + o.eps)
        for mean_of, square in zip(m, v)
    ]
    param = [(1 - o.lr * o.weight_decay) * old - o.lr * update for old, update in zip(x.param.data, updates)]
    return {key: Array(x.param.shape, values) for key, values in {"param": param, "m": m, "v": v}.items()}


@formula(
    "optim.clip_grad_norm",
    inputs={"grad": data("...")},
    options={"max_norm": number(above=0), "eps": number(least=0)},
)
def optim_clip_grad_norm(c, x, o):
    norm = mp.sqrt(mp.fsum(entry**2 for entry in x.grad.data))
    short = o.max_norm >= norm + o.eps
    scale = mpf(1) if short else o.max_norm / (norm + o.eps)
    return {"grad": Array(x.grad.shape, [entry * scale for entry in x.grad.data]), "norm": scalar(norm)}


@formula(
    "optim.lora",
    inputs={"x": flows("BI"), "w": stops("OI"), "a": flows("RI"), "b": flows("OR")},
    options={"alpha": number(), "rank": optional(whole())},
)
def optim_lora(c, x, o):
    (batch, width), outputs, rank = x.x.shape, x.w.shape[0], x.a.shape[0]
    if rank == 0 or o.rank not in (None, rank):
        raise Fault("option", f"rank is not {rank}, or is 0")

    def y(n, k):
        frozen = mp.fsum(x.x[n, i] * c.stop(x.w[k, i]) for i in range(width))
        low = [mp.fsum(x.x[n, i] * x.a[r, i] for i in range(width)) for r in range(rank)]
        return frozen + o.alpha / rank * mp.fsum(low[r] * x.b[k, r] for r in range(rank))

    return {"y": table((batch, outputs), y)}


@formula(
    "optim.schedule",
    inputs={"step": data("")},
    options={
        "kind": choice("constant", "linear", "cosine"),
        "warmup_steps": whole(),
        "total_steps": whole(least=1),
        "min_ratio": number(least=0, most=1),
    },
)
def optim_schedule(c, x, o):
    if o.kind != "constant" and o.total_steps < o.warmup_steps:
        raise Fault("option", "total_steps is below warmup_steps")
    step = whole_entry(x.step[()], 0, "step")
    if step < o.warmup_steps:
        return {"scale": scalar(mpf(step) / o.warmup_steps)}
    if o.kind == "constant":
        return {"scale": scalar(mpf(1))}
    progress = min(mpf(1), mpf(step - o.warmup_steps) / max(1, o.total_steps - o.warmup_steps))
    course = 1 - progress if o.kind == "linear" else (1 + mp.cospi(progress)) / 2
    return {"scale": scalar(o.min_ratio + (1 - o.min_ratio) * course)}


if __name__ == "__main__":
    mp.dps = DIGITS
    if len(sys.argv) == 3 and sys.argv[1] == "--check":
        sys.exit(check(sys.argv[2]))
    if len(sys.argv) > 1:
        sys.exit(__doc__)
    serve()
