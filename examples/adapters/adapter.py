"""What every Python adapter here shares: the loop that speaks the protocol (see PROTOCOL.md). Standard library only.

A formula is a function with a decorator. Its parameters are the formula's inputs; its keyword-only parameters are the
options that it can do, with its own defaults. It returns a dict of outputs, the formula's first output first:

    @formula("advantage.group_norm", only={"std": "sample"})
    def group_norm(rewards, group, *, eps=1e-6):
        return {"advantages": [...]}

`only` names options that it does not have, and the one value that it computes by: any other value, and any option that
is named nowhere, is answered with `unsupported`. An output that is wanted and not returned is answered with null, which
the judge counts as not given. `raise Unsupported("why")` and `raise Refused("shape", "why")` answer so.

Parameters may be annotated, and then what they must be is checked here: `logp: "BT"` has two axes of those lengths,
`"B|BT"` one or two, `"..."` any, `"scalar"` none; `"mask BT"`, `"label B"`, `"token BT"` and so on are no real numbers; an
option is `"[0, 1]"`, `"(0, inf)"`, `"null (0, inf)"`, `"whole [1, inf)"`, bool, or a tuple of its values. Leave the
annotations out to have your own refusals judged.
"""

import inspect
import json
import math
import re
import sys
import traceback

FORMULAS, GRADIENTS = {}, {}


class Unsupported(Exception):
    """This question is beyond the implementation."""


class Refused(Exception):
    """This question is wrong, by one of the specification's error codes."""

    def __init__(self, kind, message):
        super().__init__(message)
        self.kind = kind


def formula(name, only=()):
    def register(function):
        FORMULAS[name] = (function, dict(only))
        return function

    return register


def gradient(name):
    """The gradient of the sum of the first output, by input; an input that is left out gets zeros."""

    def register(function):
        GRADIENTS[name] = function
        return function

    return register


def nested(name, shape, data):
    """An array as nested lists of numbers; a scalar as a number."""
    entries = [float(x.replace("Infinity", "inf")) if x in ("NaN", "Infinity", "-Infinity") else x for x in data]
    for length in reversed(shape[1:]):
        entries = [entries[i : i + length] for i in range(0, len(entries), length)] if length else [[]] * shape[0]
    return entries if shape else entries[0]


def plain(value):
    """Nested lists as JSON can say them."""
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def zeros(value):
    return [zeros(entry) for entry in value] if isinstance(value, list) else 0.0


def by_hand(name, function, inputs, options, want):
    """Outputs, and the gradients that a function of the same name gives."""
    answer = dict(function(**inputs, **options))
    if name in GRADIENTS and any(wanted.startswith("grad:") for wanted in want):
        given = GRADIENTS[name](**inputs, **options)
        answer.update({"grad:" + key: given.get(key, zeros(value)) for key, value in inputs.items()})
    return answer


def length_check(name, shape, wanted, lengths):
    """Each axis goes by a letter, which stands for one length throughout."""
    if wanted == "...":
        if len(shape) > 6:
            raise Refused("input", f"{name} has more than 6 axes")
        wanted = "abcdef"[: len(shape)]
        if lengths.setdefault("rank", wanted) != wanted:
            raise Refused("rank", f"{name} has {len(shape)} axes")
    fitting = [axes for axes in wanted.replace("scalar", "").split("|") if len(axes) == len(shape)]
    if not fitting:
        raise Refused("rank", f"{name} has {len(shape)} axes, not {wanted}")
    for axis, length in zip(fitting[0], shape):
        if lengths.setdefault(axis, length) != length:
            raise Refused("shape", f"{name} has {length} where an earlier input has {lengths[axis]}")


def finite_check(name, array, mask, allowed):
    """NaN and infinities are refused where the mask keeps them, or any slot of their row."""
    count, keeps = len(array["data"]), mask["data"] if mask else [1]
    for i, entry in enumerate(array["data"]):
        inside = keeps[i * len(keeps) // count : max(i * len(keeps) // count + 1, (i + 1) * len(keeps) // count)]
        if isinstance(entry, str) and entry not in allowed and any(inside):
            raise Refused("non-finite", f"{name} has {entry}")


def input_check(parameters, given):
    wanted = {name: p for name, p in parameters.items() if p.kind != p.KEYWORD_ONLY}
    lengths, mask = {}, None
    for name in [name for name in given if name not in wanted]:
        raise Refused("input", f"{name} is no input")
    for name in [name for name, p in wanted.items() if name not in given and p.default is p.empty]:
        raise Refused("input", f"{name} is missing")
    present = {name: p.annotation for name, p in wanted.items() if name in given and p.annotation is not p.empty}
    for name, annotation in present.items():
        length_check(name, given[name]["shape"], annotation.split()[-1], lengths)
        mask = given[name] if mask is None and annotation.startswith("mask ") else mask
    for name, annotation in present.items():
        kind = annotation.split()[0] if " " in annotation else "real"
        if kind in ("real", "logit"):
            finite_check(name, given[name], mask, ("-Infinity",) if kind == "logit" else ())


def option_check(name, annotation, value):
    if annotation is bool or isinstance(annotation, tuple):
        fine = isinstance(value, bool) if annotation is bool else value in annotation
    else:
        null, whole, opens, least, most, closes = re.fullmatch(
            r"(null )?(whole )?([\[(])(.+), (.+)([\])])", annotation).groups()
        number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        above = number and (value >= float(least) if opens == "[" else value > float(least))
        below = number and (value <= float(most) if closes == "]" else value < float(most))
        fine = (above and below) or (null is not None and value is None)
    if not fine:
        raise Refused("option", f"{name} cannot be {value!r}")


def check(function, inputs, options):
    """Refuses what the annotations refuse."""
    parameters = inspect.signature(function).parameters
    if any(p.annotation is not p.empty for p in parameters.values()):
        input_check(parameters, inputs)
    for name, value in options.items():
        if parameters[name].annotation is not inspect.Parameter.empty:
            option_check(name, parameters[name].annotation, value)


def chosen(function, only, given):
    """The options that the function takes, after a look that it computes by the others."""
    takes = {key for key, kind in inspect.signature(function).parameters.items() if kind.kind == kind.KEYWORD_ONLY}
    for key, value in given.items():
        if key not in takes and key not in only:
            raise Unsupported(f"there is no option {key} here")
        if key in only and value != only[key]:
            raise Unsupported(f"{key} is always {only[key]} here, never {value}")
    return {key: value for key, value in given.items() if key in takes}


def reply(request, compute, read, write):
    try:
        name, want = request["formula"], request["want"]
        if name not in FORMULAS:
            raise Unsupported("there is no such formula here")
        function, only = FORMULAS[name]
        options = chosen(function, only, request["options"])
        check(function, request["inputs"], options)
        inputs = {key: read(key, array["shape"], array["data"]) for key, array in request["inputs"].items()}
        answer = compute(name, function, inputs, options, want)
        return {"ok": {key: write(answer[key]) if key in answer else None for key in want}}
    except Unsupported as why:
        return {"unsupported": str(why)}
    except Refused as why:
        return {"error": {"kind": why.kind, "message": str(why)}}
    except Exception as why:  # the implementation's own refusal, or its end
        traceback.print_exc()
        return {"error": {"kind": "exception", "message": f"{type(why).__name__}: {why}"}}


def serve(name, version, dtype="f64", compute=by_hand, read=nested, write=plain):
    """Answers line by line until the judge says bye. What is printed goes to stderr, so that no line is mixed up."""
    out, sys.stdout = sys.stdout, sys.stderr
    hello = {"protocol": 1, "name": name, "version": version, "language": "python", "dtype": dtype}
    for line in sys.stdin:
        request = json.loads(line)
        if request["cmd"] == "bye":
            break
        said = {"ok": {**hello, "formulas": list(FORMULAS)}} if request["cmd"] == "hello" else None
        said = said or reply(request, compute, read, write)
        out.write(json.dumps({"id": request["id"], **said}) + "\n")
        out.flush()
