# ABOUT
#
# Fill in `answer` and run this file: python3 THIS_FILE [f64 | f32 | bf16], the format that `answer` computes in.
import sys
from math import inf, isnan, nan

OPTIONS = "OPTIONS"
INPUTS = "INPUTS"


class Refused(Exception):
    """Raise Refused(code) where the specification wants an error."""


def answer(inputs, options):
    """Your implementation: every output by name, and if you have them gradients as "grad:INPUT"."""
    raise NotImplementedError("fill in `answer`")


# What is right, how far off each entry may be in units of roundoff, and what has to be there.
EXPECTED = "EXPECTED"
BOUNDS = "BOUNDS"
OUTPUTS = "OUTPUTS"
ERROR = "ERROR"
# The formats that hold the inputs, and how far the nearest branch is.
EXACT_IN = "EXACT_IN"
MARGIN = "MARGIN"
FORMATS = {"f64": (2.0**-53, 2.0**-1022), "f32": (2.0**-24, 2.0**-126), "bf16": (2.0**-8, 2.0**-126)}


def shape(array):
    return [len(array)] + (shape(array[0]) if array else []) if isinstance(array, (list, tuple)) else []


def entries(array):
    return [e for part in array for e in entries(part)] if isinstance(array, (list, tuple)) else [array]


def problems(got, unit, smallest):
    for name in OUTPUTS:
        if name not in got:
            yield f"`{name}` is missing"
    for name in got:
        if name not in EXPECTED:
            yield f"`{name}` is not asked for"
        elif shape(got[name]) != shape(EXPECTED[name]):
            yield f"`{name}` has the shape {shape(got[name])} where {shape(EXPECTED[name])} is expected"
        else:
            rows = zip(entries(EXPECTED[name]), entries(BOUNDS[name]), map(float, entries(got[name])))
            for index, (expected, bound, value) in enumerate(rows):
                allowed = 4 * unit * bound + smallest if bound > 0 else 0.0
                same = expected == value or (isnan(expected) and isnan(value))
                if not same and not abs(value - expected) <= allowed:
                    yield f"`{name}` entry {index} is {value} where {expected} is expected, give or take {allowed}"


def main():
    dtype = sys.argv[1] if len(sys.argv) > 1 else "f64"
    unit, smallest = FORMATS[dtype]
    if (EXACT_IN and dtype not in EXACT_IN) or not MARGIN > 4 * unit:
        sys.exit(f"in {dtype} this case decides nothing")
    try:
        got = answer(INPUTS, OPTIONS)
    except Refused as refusal:
        if str(refusal) == ERROR:
            return print("right")
        sys.exit(f"wrong: refused with `{refusal}`" + (f" where `{ERROR}` is expected" if ERROR else ""))
    if ERROR:
        sys.exit(f"wrong: there is an answer where the error `{ERROR}` is expected")
    wrong = list(problems(got, unit, smallest))
    if wrong:
        sys.exit("wrong: " + "\n".join(wrong))
    print("right")


if __name__ == "__main__":
    main()
