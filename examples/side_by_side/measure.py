"""Measures contestants side by side: each is a process of its own, asked in turns on the same tensors.

The table says the median of every contestant and how many times ours goes into it. A contestant whose loss or gradients
differ from plain PyTorch's is marked: it did not do the same work. `examples/side_by_side/run` starts this.
"""

import argparse
import datetime
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import PackageNotFoundError, version

import numpy
import torch

HERE = pathlib.Path(__file__).resolve().parent
OURS = ("fused", "torch")
PACKAGES = ("torch", "verl", "trl", "liger-kernel", "transformers")
ALIKE = {"f32": 1e-3, "bf16": 5e-2}  # relative differences of losses and gradients' norms that rounding explains
TOLD = {
    "fused": "grpo-oracle, fused",
    "torch": "grpo-oracle, libtorch",
    "eager": "plain PyTorch, eager",
    "eager-compiled": "plain PyTorch, torch.compile",
    "verl": "verl",
    "trl": "TRL",
    "liger": "Liger",
    "products": "three bare matrix products",
    "hf": "transformers `generate`",
    "hf-static": "transformers `generate`, static cache",
}


class Worker:
    """A contestant's process."""

    def __init__(self, name, options):
        self.name = name
        command = [sys.executable, str(HERE / "worker.py"), name]
        if name in OURS:
            folder = options.binaries / "examples"  # as cargo leaves it
            command = [str((folder if folder.is_dir() else options.binaries) / "side_by_side"), name]
        environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, env=environment, text=True
        )

    def ask(self, request):
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if line:
            return json.loads(line)
        self.log.seek(0)
        last = self.log.read().decode(errors="replace").strip().splitlines()[-1:] or ["without a word"]
        return {"problem": f"ended: {last[0]}"}

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def save(folder, **arrays):
    folder.mkdir()
    for name, array in arrays.items():
        numpy.save(folder / f"{name}.npy", numpy.ascontiguousarray(array))
    return folder


def tokens_of(random, rows, columns):
    """What a loss reads beside the log-probabilities of the policy: three quarters of the slots hold a token."""
    lengths = random.integers(columns // 2, columns + 1, rows)
    mask = numpy.arange(columns) < lengths[:, None]
    advantages = numpy.repeat(random.standard_normal((rows, 1)), columns, 1).astype(numpy.float32)
    near = [random.normal(0, 0.15, (rows, columns)).astype(numpy.float32) for _ in range(2)]
    return mask, advantages, near


def loss_inputs(folder, rows, columns):
    random = numpy.random.default_rng(1)
    mask, advantages, (old, ref) = tokens_of(random, rows, columns)
    logp = -random.exponential(1.0, (rows, columns)).astype(numpy.float32)
    return save(folder, logp=logp, logp_old=logp + old, logp_ref=logp + ref, advantages=advantages, mask=mask)


def head_inputs(folder, rows, columns, hidden_size, vocabulary):
    random = numpy.random.default_rng(2)
    mask, advantages, (old, ref) = tokens_of(random, rows, columns)
    hidden = random.standard_normal((rows, columns, hidden_size), numpy.float32)
    weight = (random.standard_normal((vocabulary, hidden_size), numpy.float32) / hidden_size**0.5)
    targets = random.integers(0, vocabulary, (rows, columns))
    logp = []
    for states, chosen in zip(torch.from_numpy(hidden), torch.from_numpy(targets)):
        logits = states @ torch.from_numpy(weight).t()
        logp.append((logits.gather(1, chosen[:, None])[:, 0] - logits.logsumexp(1)).numpy())
    logp = numpy.stack(logp)
    return save(folder, hidden=hidden, weight=weight, targets=targets, logp_old=logp + old, logp_ref=logp + ref,
                advantages=advantages, mask=mask)


def rollout_inputs(folder, rows, columns, vocabulary, copies):
    random = numpy.random.default_rng(3)
    prompts = random.integers(0, vocabulary, (rows // copies, columns))
    return save(folder, prompts=numpy.repeat(prompts, copies, 0))


def in_turns(names, request, rounds, options):
    """Every contestant's answers; the first of each is the warm-up, and left out."""
    workers = [Worker(name, options) for name in names]
    answers = {name: [] for name in names}
    for turn in range(rounds + 1):
        # The order goes round, so that nobody always follows the same one.
        for worker in workers[turn % len(workers) :] + workers[: turn % len(workers)]:
            said = answers[worker.name]
            if said and "problem" in said[-1]:
                continue
            said.append(worker.ask(request))
            problem = said[-1].get("problem")
            print(f"  {worker.name}: {problem or '%.4g s' % said[-1]['seconds']}", flush=True)
    for worker in workers:
        worker.end()
    return {name: said[1:] if "problem" not in said[-1] else said[-1:] for name, said in answers.items()}


def is_alike(answer, other, dtype):
    """Whether two answers have the same loss and gradients as long."""
    pairs = list(zip([answer["value"], *answer["norms"]], [other["value"], *other["norms"]]))
    return all(abs(a - b) <= ALIKE[dtype] * abs(b) for a, b in pairs)


def seconds_row(name, said, base, request, work):
    row = {"contestant": name}
    if "problem" in said[0]:
        return {**row, "problem": said[0]["problem"]}
    times = sorted(answer["seconds"] for answer in said)
    row |= {"median_s": statistics.median(times), "least_s": times[0], "most_s": times[-1], "rounds": len(times)}
    if work:
        row["tokens_per_s"] = work / row["median_s"]
    if base and said[0]["value"] is not None:
        row["agrees"] = is_alike(said[0], base, request.get("dtype", "f32"))
    return row


def measured(title, names, request, rounds, options, work=None):
    print(f"{title}:", flush=True)
    said = in_turns(names, request, rounds, options)
    base = said.get("eager", [None])[0]
    base = None if base is None or "problem" in base else base
    rows = [seconds_row(name, said[name], base, request, work) for name in names]
    return {"title": title, "request": {**request, "folder": ""}, "rows": rows}


def memory(title, names, request, options):
    """The most memory that one call took above what was there before, each in a process that does nothing else."""
    print(f"{title}:", flush=True)
    rows = []
    for name in names:
        worker = Worker(name, options)
        answer = worker.ask(request)
        worker.end()
        row = {"contestant": name}
        row |= {"problem": answer["problem"]} if "problem" in answer else {"peak_mb": (answer["peak"] - answer["before"]) / 1e6}
        print(f"  {name}: {row}", flush=True)
        rows.append(row)
    return {"title": title, "request": {**request, "folder": ""}, "rows": rows}


def verify(options):
    """How long the reference takes to answer and be judged on all fixtures."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        program = [str(options.binaries / "grpo-oracle"), "verify", "--builtin", "reference"]
        done = subprocess.run(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        times.append(time.perf_counter() - start)
    row = {"contestant": "reference", "median_s": statistics.median(times), "least_s": min(times), "most_s": max(times)}
    row |= {"rounds": len(times)} if done.returncode == 0 else {"problem": done.stdout.strip().splitlines()[-1]}
    print(f"verify: {row}", flush=True)
    return {"title": "`grpo-oracle verify --builtin reference`, all fixtures", "rows": [row]}


def tables(options, scratch):
    wanted = options.measures.split(",")
    common = {"device": options.device, "threads": options.threads, "least_s": 0}
    if "loss" in wanted:
        names = [*OURS, "eager", *(["eager-compiled"] if options.compiled else []), "verl", "trl"]
        for rows in (32, 256):
            folder = loss_inputs(scratch / f"loss-{rows}", rows, 1024)
            request = {**common, "do": "loss", "folder": str(folder), "threads": 1, "least_s": 0.1}
            title = f"Loss, gradient and metrics for given log-probabilities: {rows * 1024:,} slots, f32, one thread"
            yield measured(title, names, request, 2 * options.rounds, options)
    if "head" in wanted:
        names = [*OURS, "eager", "verl", "trl", "liger", "products"]
        folder = head_inputs(scratch / "head", 4, 256, 576, 49152)
        request = {**common, "do": "head", "folder": str(folder), "dtype": options.dtype}
        shape = f"B=4 T=256 H=576 V=49152, {options.dtype}"
        title = f"Head: hidden states to loss and gradients by them and by the weight: {shape}"
        yield measured(title, names, request, options.rounds, options)
        yield memory(f"Head: peak memory of the same above its inputs: {shape}", names, request, options)
    if "rollout" in wanted:
        names = ["fused", "hf", *(["hf-static"] if options.device != "cpu" else [])]
        for copies in (1, 8):
            folder = rollout_inputs(scratch / f"rollout-{copies}", 32, 128, 49152, copies)
            request = {**common, "do": "rollout", "folder": str(folder), "model": str(options.model), "new_tokens": 64,
                       "dtype": options.dtype}
            title = f"Rollouts: {options.model.name}, 32 prompts of 128 tokens ({32 // copies} different ones), 64 new tokens each"
            yield measured(title, names, request, max(2, options.rounds // 2), options, work=32 * 64)
    if "verify" in wanted:
        yield verify(options)


def markdown(found):
    lines = ["# Side by side", "", "Written by `examples/side_by_side/run`, not by hand: every contestant a process of its own, asked in turns",
             "on the same tensors; medians, of losses over turns of a tenth of a second each. \"Times ours\" is a contestant's figure over",
             "that of the first row.", ""]
    lines += [f"{found['date']}, {found['machine']}; " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()) + ".", ""]
    for table in found["tables"]:
        key = "peak_mb" if any("peak_mb" in row for row in table["rows"]) else "median_s"
        head = ["peak, MB"] if key == "peak_mb" else ["median, ms", "least to most"]
        has_rate = any("tokens_per_s" in row for row in table["rows"])
        head += ["tokens/s"] if has_rate else []
        lines += [f"## {table['title']}", "", f"| | {' | '.join(head)} | times ours | |", "|---" * (len(head) + 3) + "|"]
        ours = table["rows"][0].get(key)
        for row in table["rows"]:
            name = TOLD.get(row["contestant"], row["contestant"])
            if "problem" in row:
                lines.append(f"| {name} |{' |' * (len(head) + 1)} {row['problem'].replace('|', '/')} |")
                continue
            cells = [f"{row[key]:.0f}"] if key == "peak_mb" else [
                f"{1e3 * row[key]:.4g}", f"{1e3 * row['least_s']:.3g} to {1e3 * row['most_s']:.3g}"]
            cells += [f"{row['tokens_per_s']:.0f}"] if has_rate else []
            ratio = f"{row[key] / ours:.2f}" if ours else ""
            note = "" if row.get("agrees", True) else "another loss or gradient than plain PyTorch's"
            lines.append(f"| {name} | {' | '.join(cells)} | {ratio} | {note} |")
        lines.append("")
    return "\n".join(lines)


def versions():
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            pass
    return found


def machine(options):
    if options.device != "cpu":
        return torch.cuda.get_device_name()
    names = [line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {options.threads} threads"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binaries", type=pathlib.Path, required=True, help="the folder of our programs")
    parser.add_argument("--measures", default="loss,head,rollout,verify", help="which, with commas between")
    parser.add_argument("--rounds", type=int, default=5, help="how often each contestant is asked; short calls more often")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("f32", "bf16"), default="f32")
    parser.add_argument("--compiled", action="store_true", help="ask torch.compile, too")
    parser.add_argument("--model", type=pathlib.Path, help="a directory that transformers loads, for the rollouts")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("target/side_by_side"), help="folder of the results")
    options = parser.parse_args()
    if "rollout" in options.measures and not (options.model and options.model.is_dir()):
        parser.error("the rollouts want --model, a directory that transformers loads")
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"date": f"{datetime.datetime.now(datetime.timezone.utc):%F}", "machine": machine(options),
             "versions": versions(), "tables": []}
    with tempfile.TemporaryDirectory() as scratch:
        for table in tables(options, pathlib.Path(scratch)):
            found["tables"].append(table)
            (options.out / "side_by_side.json").write_text(json.dumps(found, indent=1) + "\n")
            (options.out / "side_by_side.md").write_text(markdown(found))
    print(f"the table is {options.out / 'side_by_side.md'}")


if __name__ == "__main__":
    main()
