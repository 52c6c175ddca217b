#!/usr/bin/env python3
"""Right implementations in plain Python for the zoo to get wrong: each other file here imports this one, replaces one of
its functions and serves the formulas that the function serves. By itself it is a right adapter of them all:

    grpo-oracle verify --adapter "python3 examples/adapters/zoo/base.py"

Everything is a list; gradients come from a tape of a few lines. It is for reading and for being broken, not for training.
"""

import json
import math
import re
import sys

# A tape --------------------------------------------------------------------------------------------------------------


class Var:
    """A number, and what it was made of: pairs of a Var and the derivative by it."""

    def __init__(self, value, made_of=()):
        self.value, self.made_of = value, made_of

    def __add__(self, other):
        return Var(self.value + value(other), [(self, 1.0)] + flows(other, 1.0))

    def __mul__(self, other):
        return Var(self.value * value(other), [(self, value(other))] + flows(other, self.value))

    def __sub__(self, other):
        return Var(self.value - value(other), [(self, 1.0)] + flows(other, -1.0))

    def __rsub__(self, other):
        return Var(other - self.value, [(self, -1.0)])

    def __truediv__(self, other):
        quotient = self.value / value(other)
        return Var(quotient, [(self, 1.0 / value(other))] + flows(other, -quotient / value(other)))

    def __neg__(self):
        return Var(-self.value, [(self, -1.0)])

    __radd__, __rmul__ = __add__, __mul__


def value(number):
    return number.value if isinstance(number, Var) else number


def flows(number, slope):
    return [(number, slope)] if isinstance(number, Var) else []


def stop(number):
    """Held constant."""
    return value(number)


def exp(number):
    power = math.inf if value(number) > 709.78 else math.exp(value(number))
    return Var(power, flows(number, power))


def log(number):
    return Var(math.log(value(number)), flows(number, 1.0 / value(number)))


def sqrt(number):
    root = math.sqrt(value(number))
    return Var(root, flows(number, 0.5 / root)) if root else Var(0.0)


def total(numbers):
    numbers = list(numbers)
    values = [value(n) for n in numbers]
    # fsum raises where infinities meet; a sum is NaN there.
    exact = math.fsum(values) if all(map(math.isfinite, values)) else sum(values)
    return Var(exact, [pair for n in numbers for pair in flows(n, 1.0)])


def minimum(one, other):
    return one if value(one) <= value(other) else other


def maximum(one, other):
    return one if value(one) >= value(other) else other


def clamp(number, low, high):
    return low if value(number) < low else high if value(number) > high else number


def gradients(output):
    """The derivative of an output by every Var that it was made of, by identity."""
    order, slopes, stack = [], {}, [(output, False)]
    seen = set()
    while stack:
        node, is_done = stack.pop()
        if is_done:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((source, False) for source, _ in node.made_of)
    slopes[id(output)] = 1.0
    for node in reversed(order):
        slope = slopes.get(id(node), 0.0)
        for source, by in node.made_of:
            slopes[id(source)] = slopes.get(id(source), 0.0) + slope * by
    return slopes


# The protocol --------------------------------------------------------------------------------------------------------


class Fault(Exception):
    """An answer that is an error: its code, and what to say."""


class Array:
    def __init__(self, shape, data):
        self.shape, self.data = list(shape), list(data)

    def rows(self):
        width = self.shape[1]
        return [self.data[row * width : (row + 1) * width] for row in range(self.shape[0])]


FORMULAS = {}


def formula(name, inputs, **options):
    """Registers a formula. An input is NAME:AXES and a kind: + flows, ~ stops, . data, m mask, i whole numbers, t text; a
    ? before it says that it may be absent. An option is its default and a test of its values."""

    def register(function):
        FORMULAS[name] = (function, [re.match(r"(\??)(\w+):(\*|\w*)(.)", spec).groups() for spec in inputs.split()], options)
        return function

    return register


def number(default, test):
    is_number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
    return default, lambda v: is_number(v) and test(v) or (default is None and v is None)


def optional(test):
    return number(None, test)


def one_of(*values):
    return values[0], lambda v: any(type(v) is type(known) and v == known for known in values)


def read(name, request):
    """The inputs and options of a request, checked."""
    _, inputs, options = FORMULAS[name]
    given = {key: default for key, (default, _) in options.items()} | request["options"]
    for key, test in options.items():
        if not test[1](given[key]):
            raise Fault("option", f"{key} is {given[key]}")
    arrays, lengths = {}, {}
    for may_miss, key, axes, kind in inputs:
        if key not in request["inputs"]:
            if not may_miss:
                raise Fault("input", f"{key} is missing")
            continue
        array = request["inputs"][key]
        shape = array["shape"]
        if axes == "*":
            axes = "abcdefgh"[: len(shape)]
        if key == "advantages" and len(shape) == 1:
            axes = "B"
        if len(axes) != len(shape):
            raise Fault("rank", f"{key} has the shape {shape}")
        for axis, length in zip(axes, shape):
            if lengths.setdefault(axis, length) != length:
                raise Fault("shape", f"{key} has the shape {shape}")
        data = array["data"]
        if kind in "+~.":
            data = [float(entry) for entry in data]
        if kind == "+":
            data = [Var(entry) for entry in data]
        arrays[key] = Array(shape, data)
    check_finite(inputs, arrays)
    return arrays, given


def check_finite(inputs, arrays):
    mask = next((arrays[key] for _, key, _, kind in inputs if kind == "m" and key in arrays), None)
    for _, key, _, kind in inputs:
        if kind not in "+~." or key not in arrays:
            continue
        array = arrays[key]
        for at, entry in enumerate(array.data):
            entry = value(entry)
            if math.isfinite(entry) or (key == "logits" and entry == -math.inf):
                continue
            width = mask.shape[1] if mask and len(mask.shape) == 2 else 1
            if mask is None or any(mask.data[at * width : (at + 1) * width] if len(array.shape) < len(mask.shape) else [mask.data[at]]):
                raise Fault("non-finite", f"{key} has {entry} at {at}")


def answer(request):
    name = request["formula"]
    function, inputs, _ = FORMULAS[name]
    arrays, options = read(name, request)
    outputs = function(arrays, Options(options))
    outputs = {key: out if isinstance(out, Array) else Array([], [out]) for key, out in outputs.items()}
    slopes = gradients(total(next(iter(outputs.values())).data))
    answers = {key: Array(out.shape, map(value, out.data)) for key, out in outputs.items()}
    for _, key, _, kind in inputs:
        if key in arrays and kind in "+~":
            slope = lambda entry: slopes.get(id(entry), 0.0) if isinstance(entry, Var) else 0.0
            answers[f"grad:{key}"] = Array(arrays[key].shape, map(slope, arrays[key].data))
    return {key: {"shape": answers[key].shape, "data": [plain(entry) for entry in answers[key].data]} for key in request["want"]}


class Options:
    def __init__(self, values):
        self.__dict__ = values


def plain(entry):
    """What JSON cannot say."""
    return entry if math.isfinite(entry) else "NaN" if entry != entry else "Infinity" if entry > 0 else "-Infinity"


def serve(name="zoo: base", formulas=None, dtype="f64"):
    hello = {"protocol": 1, "name": name, "version": "1", "language": "python", "dtype": dtype}
    for line in sys.stdin:
        request = json.loads(line)
        if request["cmd"] == "bye":
            return
        print(json.dumps({"id": request["id"]} | reply_to(request, hello | {"formulas": formulas or list(FORMULAS)})), flush=True)


def reply_to(request, hello):
    if request["cmd"] == "hello":
        return {"ok": hello}
    try:
        return {"ok": answer(request)}
    except Fault as fault:
        return {"error": {"kind": fault.args[0], "message": fault.args[1]}}


# Masks ---------------------------------------------------------------------------------------------------------------


def kept(array, mask):
    """The entries that a mask keeps: selected, never multiplied."""
    return [entry for entry, keep in zip(array.data, mask.data) if keep]


def mean(numbers):
    return total(numbers) / len(numbers)


def all_equal(numbers):
    return all(value(entry) == value(numbers[0]) for entry in numbers)


def variance(numbers, ddof):
    if all_equal(numbers):
        return Var(0.0)
    middle = mean(numbers)
    return total((entry - middle) * (entry - middle) for entry in numbers) / (len(numbers) - ddof)


@formula("mask.mean", "values:*+ mask:*m", axis=(None, lambda v: v is None or type(v) is int and v >= 0), empty=one_of("zero", "nan"))
def mask_mean(x, o):
    def lane_mean(places):
        entries = kept(Array([], [x["values"].data[at] for at in places]), Array([], [x["mask"].data[at] for at in places]))
        return mean(entries) if entries else Var(0.0 if o.empty == "zero" else math.nan)

    shape = x["values"].shape
    if o.axis is None:
        return {"mean": lane_mean(range(len(x["values"].data)))}
    if o.axis >= len(shape):
        raise Fault("option", f"axis is {o.axis}")
    inner = math.prod(shape[o.axis + 1 :])
    block = inner * shape[o.axis]
    starts = [outer * block + offset for outer in range(math.prod(shape[: o.axis])) for offset in range(inner)]
    lanes = [[start + step * inner for step in range(shape[o.axis])] for start in starts]
    return {"mean": Array(shape[: o.axis] + shape[o.axis + 1 :], map(lane_mean, lanes))}


@formula("mask.variance", "values:*+ mask:*m", ddof=one_of(1, 0))
def mask_variance(x, o):
    entries = kept(x["values"], x["mask"])
    if len(entries) <= o.ddof or not entries:
        raise Fault("too-few", f"{len(entries)} are kept")
    return {"variance": variance(entries, o.ddof)}


def whitened(entries, ddof, eps, eps_mode, shift_mean=True):
    if len(entries) <= ddof or not entries:
        raise Fault("too-few", f"{len(entries)} are kept")
    middle, spread = mean(entries), variance(entries, ddof)
    root = sqrt(spread + eps if eps_mode == "add" else maximum(spread, eps))
    if all_equal(entries):
        middle, root = Var(value(entries[0]), [(middle, 1.0)]), 1.0
    scaled = [(entry - middle) / root for entry in entries]
    return scaled if shift_mean else [entry + middle for entry in scaled]


@formula(
    "mask.whiten",
    "values:*+ mask:*m",
    ddof=one_of(1, 0),
    eps=number(1e-8, lambda v: v >= 0),
    eps_mode=one_of("add", "clamp"),
    shift_mean=one_of(True, False),
)
def mask_whiten(x, o):
    entries = iter(whitened(kept(x["values"], x["mask"]), o.ddof, o.eps, o.eps_mode, o.shift_mean))
    return {"whitened": Array(x["values"].shape, [next(entries) if keep else 0.0 for keep in x["mask"].data])}


# Advantages ----------------------------------------------------------------------------------------------------------


def groups(labels):
    """The members of each group: equal labels, wherever they stand."""
    members = {}
    for place, label in enumerate(labels):
        members.setdefault(label, []).append(place)
    return list(members.values())


def centred(rewards):
    middle = math.fsum(rewards) / len(rewards)
    return [reward - middle for reward in rewards]


def deviation(rewards, std):
    if all_equal(rewards):
        return 0.0
    divisor = len(rewards) - (std == "sample")
    return math.sqrt(math.fsum(gap * gap for gap in centred(rewards)) / divisor)


def normalised(gap, std, eps, eps_mode):
    if eps_mode == "threshold":
        return 0.0 if std < eps else gap / std
    return gap / ((math.sqrt(max(std * std, eps)) if eps_mode == "floor_variance" else std) + eps)


def lone_member(reward, o):
    if o.singleton == "error":
        raise Fault("group-size", "a group of one")
    is_scaled = o.singleton == "unit_std" and o.std != "none" and o.eps_mode != "threshold"
    return 0.0 if o.singleton == "zero" else reward / (1 + o.eps) if is_scaled else reward


def group_advantages(rewards, everyone, o):
    """Those of one group."""
    if len(rewards) == 1:
        return [lone_member(rewards[0], o)]
    if all_equal(rewards):
        return [0.0] * len(rewards)
    if o.std_scope == "leave_one_out":
        return [left_out(rewards, member, o) for member in range(len(rewards))]
    if o.std == "none":
        return centred(rewards)
    std = deviation(everyone if o.std_scope == "batch" else rewards, o.std)
    return [normalised(gap, std, o.eps, o.eps_mode) for gap in centred(rewards)]


def left_out(rewards, member, o):
    others = rewards[:member] + rewards[member + 1 :]
    gap = rewards[member] - math.fsum(others) / len(others)
    return gap if o.std == "none" or all_equal(others) else normalised(gap, deviation(others, o.std), o.eps, o.eps_mode)


@formula(
    "advantage.group_norm",
    "rewards:B. group:Bi",
    std=one_of("sample", "population", "none"),
    std_scope=one_of("group", "batch", "leave_one_out"),
    eps=number(1e-6, lambda v: v >= 0),
    eps_mode=one_of("add", "threshold", "floor_variance"),
    singleton=one_of("raw", "unit_std", "zero", "error"),
)
def group_norm(x, o):
    rewards = x["rewards"].data
    advantages = [0.0] * len(rewards)
    for members in groups(x["group"].data):
        for member, advantage in zip(members, group_advantages([rewards[m] for m in members], rewards, o)):
            advantages[member] = advantage
    return {"advantages": Array(x["rewards"].shape, advantages)}


def leave_one_out(rewards):
    everything = math.fsum(rewards)
    return [reward - (everything - reward) / (len(rewards) - 1) for reward in rewards]


@formula("advantage.rloo", "rewards:B. group:Bi", singleton=one_of("raw", "zero", "error"))
def rloo(x, o):
    rewards = x["rewards"].data
    advantages = [0.0] * len(rewards)
    for members in groups(x["group"].data):
        own = [rewards[m] for m in members]
        if len(own) == 1:
            o.std, o.eps_mode = "none", "add"
            found = [lone_member(own[0], o)]
        else:
            found = [0.0] * len(own) if all_equal(own) else leave_one_out(own)
        for member, advantage in zip(members, found):
            advantages[member] = advantage
    return {"advantages": Array(x["rewards"].shape, advantages)}


def gae_row(rewards, values, mask, o):
    advantages, later, next_value = [0.0] * len(rewards), 0.0, 0.0
    for t in reversed(range(len(rewards))):
        if mask[t]:
            reward, now = rewards[t], stop(values[t])
        elif o.mask_mode == "carry":
            continue
        else:
            reward, now = 0.0, 0.0
        later = reward + o.gamma * next_value - now + o.gamma * o.lam * later
        next_value = now
        advantages[t] = later
    return advantages


@formula(
    "advantage.gae",
    "rewards:BT. values:BT~ response_mask:BTm",
    gamma=number(1.0, lambda v: 0 <= v <= 1),
    lam=number(1.0, lambda v: 0 <= v <= 1),
    mask_mode=one_of("carry", "none"),
    whiten=one_of(False, True),
    whiten_ddof=one_of(1, 0),
    whiten_eps=number(1e-8, lambda v: v >= 0),
    whiten_eps_mode=one_of("add", "clamp"),
)
def gae(x, o):
    mask = x["response_mask"]
    rows = zip(x["rewards"].rows(), x["values"].rows(), mask.rows())
    advantages = [entry for row in rows for entry in gae_row(*row, o)]
    kept_only = lambda entries: [entry if keep else 0.0 for entry, keep in zip(entries, mask.data)]
    returns = kept_only([advantage + now for advantage, now in zip(advantages, x["values"].data)])
    if o.whiten:
        found = iter(whitened(kept(Array([], advantages), mask), o.whiten_ddof, o.whiten_eps, o.whiten_eps_mode))
        advantages = [next(found) if keep else 0.0 for keep in mask.data]
    return {"advantages": Array(mask.shape, kept_only(advantages)), "returns": Array(mask.shape, returns)}


# Log-probabilities ---------------------------------------------------------------------------------------------------


def tempered(logits, temperature):
    return [logit / temperature for logit in logits]


def log_softmax(logits):
    top = max(value(logit) for logit in logits)
    if top == -math.inf:
        raise Fault("input", "every token is ruled out")
    shifted = [logit - top for logit in logits]
    norm = log(total(exp(entry) for entry in shifted if value(entry) > -math.inf))
    return [entry - norm if value(entry) > -math.inf else Var(-math.inf, [(entry, 1.0), (norm, -1.0)]) for entry in shifted]


def entropy_of(logps):
    return -total(exp(logp) * logp for logp in logps if value(logp) > -math.inf)


def scored(logps, tokens):
    """The log-probability of the token at each position of a row."""
    return [row[token] for row, token in zip(logps, tokens)]


@formula("logprob.token", "logits:BTV+ tokens:BTi", temperature=number(1.0, lambda v: v > 0))
def token_logp(x, o):
    batch, width, vocabulary = x["logits"].shape
    if any(not 0 <= token < vocabulary for token in x["tokens"].data):
        raise Fault("index", "a token is outside the vocabulary")
    data = x["logits"].data
    logits = [data[at : at + vocabulary] for at in range(0, len(data), vocabulary)]
    logps = [log_softmax(tempered(row, o.temperature)) for row in logits]
    rows = [scored(logps[b * width : (b + 1) * width], tokens) for b, tokens in enumerate(x["tokens"].rows())]
    shape = [batch, width]
    return {"logp": Array(shape, sum(rows, [])), "entropy": Array(shape, map(entropy_of, logps))}


def log_ratio(logp, old):
    return logp - stop(old)


def ratio_of(logp, old, clamp_at):
    difference = log_ratio(logp, old)
    return exp(difference if clamp_at is None else clamp(difference, -clamp_at, clamp_at))


@formula("logprob.ratio", "logp:BT+ logp_old:BT~", log_ratio_clamp=optional(lambda v: v > 0))
def ratio(x, o):
    pairs = zip(x["logp"].data, x["logp_old"].data)
    return {"ratio": Array(x["logp"].shape, [ratio_of(new, old, o.log_ratio_clamp) for new, old in pairs])}


def estimate(logp, logp_ref, kind, input_clamp=None, output_clamp=None):
    """k1, abs, k2 or k3 of one token; with a + the gradient of k2."""
    raw = logp - stop(logp_ref)
    d = raw if input_clamp is None else clamp(raw, -input_clamp, input_clamp)
    found = kl_of(d, kind.rstrip("+"))
    found = found if output_clamp is None else clamp(found, -output_clamp, output_clamp)
    return Var(value(found), [(raw, value(raw))]) if kind.endswith("+") else found


def kl_of(d, kind):
    if kind == "k1":
        return d
    if kind == "abs":
        sign = (value(d) > 0) - (value(d) < 0)
        return Var(abs(value(d)), flows(d, float(sign)))
    return d * d * 0.5 if kind == "k2" else exp(-d) + d - 1.0 if isinstance(d, Var) else value(exp(-d)) + d - 1.0


KINDS = one_of(*[kind + plus for kind in ("k3", "k1", "abs", "k2") for plus in ("", "+")])
CLAMPS = {"input_clamp": optional(lambda v: v > 0), "output_clamp": optional(lambda v: v > 0)}


@formula("kl.estimate", "logp:BT+ logp_ref:BT~", kl_penalty=KINDS, **CLAMPS)
def kl(x, o):
    pairs = zip(x["logp"].data, x["logp_ref"].data)
    found = [estimate(new, ref, o.kl_penalty, o.input_clamp, o.output_clamp) for new, ref in pairs]
    return {"kl": Array(x["logp"].shape, found)}


# Losses --------------------------------------------------------------------------------------------------------------

CLIP = {
    "clip_ratio_low": number(0.2, lambda v: 0 <= v <= 1),
    "clip_ratio_high": number(0.2, lambda v: v >= 0),
    "clip_ratio_c": optional(lambda v: v > 1),
    "log_ratio_clamp": optional(lambda v: v > 0),
}


def clipped_loss(ratio, advantage, low, high):
    return -minimum(ratio * advantage, clamp(ratio, 1 - low, 1 + high) * advantage)


def dual_clipped(loss, advantage, most):
    if most is None or advantage >= 0 or value(loss) <= -most * advantage:
        return loss
    return Var(-most * advantage)


def token_loss(ratio, advantage, o):
    loss = clipped_loss(ratio, advantage, o.clip_ratio_low, o.clip_ratio_high)
    return dual_clipped(loss if isinstance(loss, Var) else Var(loss), advantage, o.clip_ratio_c)


def per_token(advantages, width):
    return advantages.data if len(advantages.shape) == 2 else [entry for entry in advantages.data for _ in range(width)]


def clip_tokens(x, mask, o):
    """Ratio, advantage and loss of each kept token, None where the mask leaves it out."""
    tokens = zip(x["logp"].data, x["logp_old"].data, per_token(x["advantages"], mask.shape[1]), mask.data)
    for logp, old, advantage, keep in tokens:
        advantage = stop(advantage)
        ratio = ratio_of(logp, old, o.log_ratio_clamp) if keep else None
        yield (ratio, advantage, token_loss(ratio, advantage, o)) if keep else None


@formula("objective.clip", "logp:BT+ logp_old:BT~ advantages:BT~ response_mask:BTm", **CLIP)
def clip(x, o):
    mask = x["response_mask"]
    tokens = list(clip_tokens(x, mask, o))
    live = [token for token in tokens if token]

    def is_clipped(ratio, advantage, _):
        return advantage > 0 and value(ratio) > 1 + o.clip_ratio_high or advantage < 0 and value(ratio) < 1 - o.clip_ratio_low

    def is_lowered(ratio, advantage, loss):
        plain = value(clipped_loss(ratio, advantage, o.clip_ratio_low, o.clip_ratio_high))
        return o.clip_ratio_c is not None and advantage < 0 and plain > -o.clip_ratio_c * advantage

    share = lambda test: sum(bool(test(*token)) for token in live) / len(live) if live else 0.0
    bound = math.inf if o.log_ratio_clamp is None else o.log_ratio_clamp
    gaps = [value(log_ratio(new, old)) for new, old, keep in zip(x["logp"].data, x["logp_old"].data, mask.data) if keep]
    return {
        "loss": Array(mask.shape, [token[2] if token else 0.0 for token in tokens]),
        "clip_fraction": share(is_clipped),
        "clip_fraction_lower": share(is_lowered),
        "ppo_kl": -math.fsum(clamp(gap, -bound, bound) for gap in gaps) / len(gaps) if gaps else 0.0,
    }


COUNT = optional(lambda v: v > 0)
AGGREGATE = {
    "loss_agg_mode": one_of("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"),
    "loss_scale_factor": COUNT,
    "batch_num_tokens": COUNT,
    "global_batch_size": COUNT,
    "dp_size": number(1.0, lambda v: v > 0),
}


def token_count(rows):
    return sum(len(row) for row in rows)


def sequence_count(rows):
    return sum(1 for row in rows if row)


def aggregate(rows, whole, width, o):
    """Rows of the losses of kept tokens become one number, by the counts of the whole batch."""
    if not any(rows):
        return Var(0.0)
    tokens = o.batch_num_tokens or token_count(whole)
    sequences = o.global_batch_size or sequence_count(whole)
    return by_mode(rows, tokens, sequences, o.loss_scale_factor or width, o.loss_agg_mode) * o.dp_size


def by_mode(rows, tokens, sequences, length, mode):
    everything = total(entry for row in rows for entry in row)
    if mode == "token-mean":
        return everything / tokens
    if mode == "token-sum":
        return everything
    if mode == "seq-mean-token-mean":
        return total(mean(row) for row in rows if row) / sequences
    return everything / sequences / (length if mode == "seq-mean-token-sum-norm" else 1.0)


def kept_rows(losses, mask):
    return [[entry for entry, keep in zip(row, keeps) if keep] for row, keeps in zip(losses.rows(), mask.rows())]


@formula("aggregate.loss", "loss:BT+ response_mask:BTm", **AGGREGATE)
def aggregate_loss(x, o):
    rows = kept_rows(x["loss"], x["response_mask"])
    return {"loss": aggregate(rows, rows, x["loss"].shape[1], o)}


@formula(
    "aggregate.micro_batches",
    "loss:BT+ response_mask:BTm micro_batch:Bi",
    micro_batch_scaling=one_of("whole", "equal", "sequences"),
    **AGGREGATE,
)
def micro_batches(x, o):
    rows, width = kept_rows(x["loss"], x["response_mask"]), x["loss"].shape[1]
    members = groups(x["micro_batch"].data)
    parts = [micro_batch([rows[m] for m in own], rows, width, len(members), o) for own in members]
    return {"loss": total(parts), "parts": Array([len(parts)], parts)}


def micro_batch(own, whole, width, count, o):
    if o.micro_batch_scaling == "whole":
        return aggregate(own, whole, width, o)
    alone = aggregate(own, own, width, o)
    return alone / count if o.micro_batch_scaling == "equal" else alone * len(own) / len(whole)


@formula(
    "objective.actor_loss",
    "logp:BT+ logp_old:BT~ ?logp_ref:BT~ advantages:BT~ response_mask:BTm ?group_endpoints:BTm ?entropy:BT+",
    kl_ratio_weight=one_of(False, True),
    kl_loss_type=KINDS,
    kl_input_clamp=CLAMPS["input_clamp"],
    kl_output_clamp=CLAMPS["output_clamp"],
    kl_loss_coef=number(0.0, lambda v: True),
    entropy_coeff=number(0.0, lambda v: True),
    gradient_accumulation_steps=number(1.0, lambda v: v >= 1),
    **CLIP,
    **AGGREGATE,
)
def actor_loss(x, o):
    mask = x["response_mask"]
    if "group_endpoints" in x:
        mask = Array(mask.shape, [a and b for a, b in zip(mask.data, x["group_endpoints"].data)])
    for term, key in [(o.kl_loss_coef, "logp_ref"), (o.entropy_coeff, "entropy")]:
        if term and key not in x:
            raise Fault("input", f"{key} is missing")
    tokens = list(clip_tokens(x, mask, o))
    policy = of_tokens([token and token[2] for token in tokens], mask, o)
    kl_term = kl_loss(x, mask, tokens, o) if o.kl_loss_coef else Var(0.0)
    entropy = of_tokens(x["entropy"].data, mask, o) if o.entropy_coeff else Var(0.0)
    loss = combined(policy, kl_term, entropy, o) / o.gradient_accumulation_steps
    return {"loss": loss, "policy_loss": policy, "kl_loss": kl_term, "entropy_loss": entropy}


def combined(policy, kl_term, entropy, o):
    return policy + kl_term * o.kl_loss_coef - entropy * o.entropy_coeff


def of_tokens(entries, mask, o):
    """The aggregate of the losses of the tokens that a mask keeps."""
    rows = kept_rows(Array(mask.shape, entries), mask)
    return aggregate(rows, rows, mask.shape[1], o)


def kl_tokens(x, o):
    pairs = zip(x["logp"].data, x["logp_ref"].data)
    return [estimate(new, ref, o.kl_loss_type, o.kl_input_clamp, o.kl_output_clamp) for new, ref in pairs]


def kl_loss(x, mask, tokens, o):
    found = kl_tokens(x, o)
    if o.kl_ratio_weight:
        found = [token and token[0] * entry for token, entry in zip(tokens, found)]
    return of_tokens(found, mask, o)


def value_error(now, old, goal, range_of):
    plain = (now - goal) * (now - goal)
    if range_of is None:
        return plain
    near = clamp(now, old - range_of, old + range_of)
    other = (near - goal) * (near - goal)
    return larger_error(plain, other)


def larger_error(plain, other):
    return maximum(plain, other)


@formula(
    "value.clipped",
    "values:BT+ values_old:BT~ returns:BT~ response_mask:BTm",
    cliprange_value=(0.5, lambda v: v is None or number(0.5, lambda v: v > 0)[1](v)),
    half=one_of(True, False),
    **AGGREGATE,
)
def value_clipped(x, o):
    mask, scale = x["response_mask"], 0.5 if o.half else 1.0
    tokens = list(zip(x["values"].data, map(stop, x["values_old"].data), map(stop, x["returns"].data), mask.data))
    errors = [value_error(now, old, goal, o.cliprange_value) * scale if keep else 0.0 for now, old, goal, keep in tokens]
    errors = [error if isinstance(error, Var) else Var(error) for error in errors]

    def is_clipped(now, old, goal):
        near = clamp(value(now), old - o.cliprange_value, old + o.cliprange_value)
        return (near - goal) * (near - goal) > (value(now) - goal) * (value(now) - goal)

    live = [token[:3] for token in tokens if token[3]]
    clipped = sum(is_clipped(*token) for token in live) / len(live) if live and o.cliprange_value else 0.0
    return {"loss": of_tokens(errors, mask, o), "clip_fraction": clipped}


# Rewards, sampling, optimiser, metrics -------------------------------------------------------------------------------

NUMBER = re.compile(r"(-\$?)?([0-9]+(?:,[0-9]{3}(?![0-9]))*)(\.[0-9]+)?", re.ASCII)


def number_at(text, place):
    """The number that stands there, and where it ends."""
    match = NUMBER.match(text, place)
    if not match:
        return None
    minus, whole, fraction = match.groups()
    whole, fraction = whole.replace(",", "").lstrip("0") or "0", (fraction or "").rstrip("0").rstrip(".")
    return ("-" if minus and (whole, fraction) != ("0", "") else "") + whole + fraction, match.end()


def numbers_in(text):
    found, place = [], 0
    while place < len(text):
        subtracts = text[place] == "-" and place and text[place - 1].isascii() and text[place - 1].isalnum()
        hit = None if subtracts else number_at(text, place)
        found.extend([hit[0]] if hit else [])
        place = hit[1] if hit else place + 1
    return found


def marked_numbers(text):
    hits = [number_at(text, match.end()) for match in re.finditer(r"(?<=####)(?=([ \t$]*))\1", text)]
    return [hit[0] for hit in hits if hit]


def texts_in(text):
    return [run for run in re.findall(r"-?[0-9.,]+", text) if run != "."]


def marked_texts(text):
    return re.findall(r"#### (-?[0-9.,]+)", text)


def found_in(text, method, compare):
    if compare == "number":
        return marked_numbers(text) if method == "strict" else numbers_in(text)
    runs = marked_texts(text) if method == "strict" else texts_in(text)
    return [run.replace(",", "") for run in runs] if method == "strict" else runs


@formula(
    "reward.gsm8k",
    "response:*t answer:*t",
    method=one_of("strict", "flexible"),
    compare=one_of("number", "text"),
    occurrence=one_of("last", "first"),
    tail_chars=(None, lambda v: v is None or type(v) is int and v >= 1),
)
def gsm8k(x, o):
    pairs = zip(x["response"].data, x["answer"].data)
    return {"reward": Array(x["response"].shape, [graded(response, answer, o) for response, answer in pairs])}


def graded(response, answer, o):
    wanted = (found_in(answer, "strict", o.compare) or found_in(answer, "flexible", o.compare) or [""])[-1].replace(",", "")
    if not any(character in "0123456789" for character in wanted):
        raise Fault("input", "the answer holds no number")
    found = found_in(response if o.tail_chars is None else response[-o.tail_chars :], o.method, o.compare)
    return float(bool(found) and found[-1 if o.occurrence == "last" else 0] == wanted)


@formula(
    "reward.overlong",
    "lengths:B.",
    max_response_length=number(20480.0, lambda v: v > 0),
    buffer=number(4096.0, lambda v: v > 0),
    penalty_factor=number(1.0, lambda v: v >= 0),
    floor=(-1.0, lambda v: v is None or number(0.0, lambda v: v <= 0)[1](v)),
)
def overlong(x, o):
    if o.buffer > o.max_response_length:
        raise Fault("option", "buffer is above max_response_length")
    return {"penalty": Array(x["lengths"].shape, [penalty(length, o) for length in x["lengths"].data])}


def penalty(length, o):
    over = length - (o.max_response_length - o.buffer)
    found = min(0.0, -over / o.buffer * o.penalty_factor)
    return found if o.floor is None else max(found, o.floor)


def softmax(logits):
    return [value(exp(entry)) for entry in log_softmax(logits)] if logits else log_softmax([-math.inf])


def filtered(logits, o):
    """The logits after top-k and top-p, those that go at -inf."""
    order = sorted((v for v in range(len(logits)) if logits[v] > -math.inf), key=lambda v: (-logits[v], v))
    order = order[: o.top_k]
    if o.top_p is not None and o.top_p < 1:
        probs = softmax([logits[v] for v in order])
        order = [v for place, v in enumerate(order) if math.fsum(probs[:place]) < o.top_p]
    return [logits[v] if v in order else -math.inf for v in range(len(logits))]


def distribution_of(logits, o):
    if o.temperature == 0:
        softmax(logits)
        return [float(v == logits.index(max(logits))) for v in range(len(logits))]
    return softmax(filtered([logit / o.temperature for logit in logits], o))


@formula(
    "sampling.distribution",
    "logits:BV.",
    temperature=number(1.0, lambda v: v >= 0),
    top_k=(None, lambda v: v is None or type(v) is int and v >= 1),
    top_p=optional(lambda v: 0 < v <= 1),
)
def distribution(x, o):
    if x["logits"].shape[1] == 0:
        raise Fault("input", "there is no vocabulary")
    return {"probs": Array(x["logits"].shape, sum((distribution_of(row, o) for row in x["logits"].rows()), []))}


def quotient(one, other):
    return one / other if other else math.nan if one == 0 or one != one else math.copysign(math.inf, one)


def corrected(average, beta, step):
    return average / (1 - beta**step)


def adam_step(param, grad, m, v, step, o):
    m = o.beta1 * m + (1 - o.beta1) * grad
    v = o.beta2 * v + (1 - o.beta2) * grad * grad
    update = quotient(corrected(m, o.beta1, step), math.sqrt(corrected(v, o.beta2, step)) + o.eps)
    return (1 - o.lr * o.weight_decay) * param - o.lr * update, m, v


@formula(
    "optim.adamw",
    "param:*. grad:*. m:*. v:*. step:.",
    lr=number(0.001, lambda v: v >= 0),
    beta1=number(0.9, lambda v: 0 <= v < 1),
    beta2=number(0.999, lambda v: 0 <= v < 1),
    eps=number(1e-8, lambda v: v >= 0),
    weight_decay=number(0.01, lambda v: v >= 0),
)
def adamw(x, o):
    step = x["step"].data[0]
    if step < 1 or step != int(step) or any(entry < 0 for entry in x["v"].data):
        raise Fault("input", "step is no whole number from 1, or v is negative")
    entries = zip(*[x[key].data for key in ("param", "grad", "m", "v")])
    after = list(zip(*[adam_step(*entry, step, o) for entry in entries])) or [(), (), ()]
    return {key: Array(x["param"].shape, found) for key, found in zip(("param", "m", "v"), after)}


def chance(n, c, k):
    return 1.0 - math.prod(max(i - k, 0) / i for i in range(n - c + 1, n + 1))


@formula("metrics.pass_at_k", "num_samples:Bi num_correct:Bi", k=(1, lambda v: type(v) is int and v >= 1))
def pass_at_k(x, o):
    pairs = list(zip(x["num_samples"].data, x["num_correct"].data))
    if any(not 0 <= c <= n <= 2**24 for n, c in pairs):
        raise Fault("input", "more are correct than were drawn, or too many")
    if any(n < o.k for n, _ in pairs):
        raise Fault("group-size", "fewer samples than k")
    return {"pass_at_k": Array([len(pairs)], [chance(n, c, o.k) for n, c in pairs])}


if __name__ == "__main__":
    serve()
