"""One contestant of the side-by-side measurement: a public implementation in Python, asked over standard input.

    python3 worker.py NAME

`examples/side_by_side/run` starts it. A request is a line of JSON with `do`, the `folder` of the tensors and what else
the measure wants; the answer is a line with the seconds that a call took, the median of so many, and what it
computed. The first request of a measure reads the tensors and warms up. What a package logs goes to standard error.
"""

import json
import os
import pathlib
import resource
import statistics
import sys
import time

ANSWERS = os.fdopen(os.dup(1), "w")  # packages that print must not print among the answers
os.dup2(2, 1)

import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "adapters"))

CLIP_LOW, CLIP_HIGH, DUAL, KL_COEF = 0.2, 0.28, 3.0, 0.04
CONTESTANTS = {}


def contestant(name, measure):
    """Registers what prepares a measure: inputs in, and out comes a call that returns its loss and its gradients."""

    def register(prepare):
        CONTESTANTS.setdefault(name, {})[measure] = prepare
        return prepare

    return register


class Inputs:
    """The tensors of a folder, on the device asked for."""

    def __init__(self, request):
        self.folder, self.device = pathlib.Path(request["folder"]), request["device"]
        self.request = request

    def __getitem__(self, name):
        import numpy

        tensor = torch.from_numpy(numpy.load(self.folder / f"{name}.npy")).to(self.device)
        return tensor.to(self.dtype()) if name in ("hidden", "weight") else tensor

    def dtype(self):
        return {"f32": torch.float32, "bf16": torch.bfloat16}[self.request.get("dtype", "f32")]

    def leaf(self, name):
        return self[name].requires_grad_()


def eager_loss(inputs):
    """GRPO's loss and its metrics as one would write them: clipped objective and k3, both by token mean."""
    mask, advantages = inputs["mask"].bool(), inputs["advantages"]
    logp_old, logp_ref = inputs["logp_old"], inputs["logp_ref"]

    def loss(logp):
        log_ratio = logp - logp_old
        ratio = log_ratio.exp()
        surrogate = torch.min(ratio * advantages, ratio.clamp(1 - CLIP_LOW, 1 + CLIP_HIGH) * advantages)
        dual = torch.where(advantages < 0, torch.max(surrogate, DUAL * advantages), surrogate)
        drift = logp_ref - logp
        kl = drift.exp() - drift - 1
        count = mask.sum()
        value = ((KL_COEF * kl - dual) * mask).sum() / count
        with torch.no_grad():
            clipped = torch.where(advantages > 0, ratio > 1 + CLIP_HIGH, ratio < 1 - CLIP_LOW)
            metrics = [(clipped * mask).sum() / count, (-log_ratio * mask).sum() / count, (ratio * mask).sum() / count]
            metrics += [(kl * mask).sum() / count]
        return value, [float(metric) for metric in metrics]

    return loss


def of_logp(loss, inputs):
    """A call of a loss by log-probabilities that are given."""
    leaf = inputs.leaf("logp")

    def call():
        leaf.grad = None
        value, _ = loss(leaf)
        value.backward()
        return float(value), [leaf.grad]

    return call


@contestant("eager", "loss")
def eager(inputs):
    return of_logp(eager_loss(inputs), inputs)


@contestant("eager-compiled", "loss")
def eager_compiled(inputs):
    return of_logp(torch.compile(eager_loss(inputs), dynamic=False), inputs)


def verl_loss(inputs):
    """As verl's actor worker computes it: policy loss with its metrics, k3, aggregation."""
    import verl_adapter

    core = verl_adapter.core
    config = verl_adapter.actor(clip_ratio_low=CLIP_LOW, clip_ratio_high=CLIP_HIGH, clip_ratio_c=DUAL)
    mask, advantages = inputs["mask"].to(torch.float32), inputs["advantages"]
    logp_old, logp_ref = inputs["logp_old"], inputs["logp_ref"]

    def loss(logp):
        policy, metrics = core.compute_policy_loss_vanilla(logp_old, logp, advantages, mask, "token-mean", config)
        kl = core.kl_penalty(logp, logp_ref, "low_var_kl")
        kl = core.agg_loss(loss_mat=kl, loss_mask=mask, loss_agg_mode="token-mean")
        return policy + KL_COEF * kl, [*metrics.values(), float(kl.detach())]

    return loss


@contestant("verl", "loss")
def verl(inputs):
    return of_logp(verl_loss(inputs), inputs)


def trl_loss(inputs):
    """As TRL's trainer computes it, metrics and all; its cap on the ratio is not verl's dual clip where A > 0."""
    import trl_adapter

    mask, advantages = inputs["mask"].long(), inputs["advantages"]
    logp_old, logp_ref = inputs["logp_old"], inputs["logp_ref"]
    items = mask.sum()

    def loss(logp):
        return trl_adapter.compute(
            "dapo", logp, logp_old, advantages, mask, reference=logp_ref, epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH,
            delta=DUAL, beta=KL_COEF, items=items, use_bias_correction_kl=False)

    return loss


@contestant("trl", "loss")
def trl(inputs):
    return of_logp(trl_loss(inputs), inputs)


def of_hidden(logps, loss, inputs):
    """A call from hidden states to the gradients by them and by the head's weight."""
    hidden, weight, targets = inputs.leaf("hidden"), inputs.leaf("weight"), inputs["targets"]

    def call():
        hidden.grad = weight.grad = None
        value, _ = loss(logps(hidden, weight, targets))
        value.backward()
        return float(value), [hidden.grad, weight.grad]

    return call


def eager_logps(hidden, weight, targets):
    logits = (hidden @ weight.t()).float()
    return torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


@contestant("eager", "head")
def eager_head(inputs):
    return of_hidden(eager_logps, eager_loss(inputs), inputs)


@contestant("verl", "head")
def verl_head(inputs):
    from stand_ins import load

    fused = load("verl.utils.experimental.torch_functional").FusedLinearForPPO()
    return of_hidden(lambda hidden, weight, targets: fused(hidden, weight, targets)[0], verl_loss(inputs), inputs)


@contestant("trl", "head")
def trl_head(inputs):
    from stand_ins import load

    chunked = load("trl.kernels.chunked_logprob").ChunkedLogProbFunction

    def logps(hidden, weight, targets):
        flat = chunked.apply(hidden.flatten(0, 1), weight, None, targets.flatten(), 1.0, 32768, None, 1.0, ())
        return flat[0].view(targets.shape)

    return of_hidden(logps, trl_loss(inputs), inputs)


@contestant("liger", "head")
def liger_head(inputs):
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    loss = LigerFusedLinearGRPOLoss(
        beta=KL_COEF, compiled=inputs.request["device"] != "cpu", epsilon_low=CLIP_LOW, epsilon_high=CLIP_HIGH,
        loss_type="dapo", delta=DUAL, use_ref_model=True)
    hidden, weight, targets = inputs.leaf("hidden"), inputs.leaf("weight"), inputs["targets"]
    mask, advantages = inputs["mask"].long(), inputs["advantages"][:, 0].contiguous()
    logp_old, logp_ref = inputs["logp_old"], inputs["logp_ref"]

    def call():
        hidden.grad = weight.grad = None
        value, _ = loss(hidden, weight, targets, mask, advantages, ref_per_token_logps=logp_ref,
                        old_per_token_logps=logp_old)
        value.backward()
        return float(value), [hidden.grad, weight.grad]

    return call


@contestant("products", "head")
def products(inputs):
    """The three matrix products that no implementation can do without, in chunks of 256 rows; they compute nothing."""
    hidden, weight = inputs["hidden"].flatten(0, 1), inputs["weight"]
    rows = 256
    logits = torch.empty(rows, len(weight), dtype=hidden.dtype, device=hidden.device)
    by_weight = torch.zeros(hidden.shape[1], len(weight), dtype=hidden.dtype, device=hidden.device)

    def call():
        by_hidden = []
        for chunk in hidden.split(rows):
            own = logits[: len(chunk)]
            torch.mm(chunk, weight.t(), out=own)
            by_hidden.append(own @ weight)
            by_weight.addmm_(chunk.t(), own)
        return None, []

    return call


@contestant("hf", "rollout")
def hf(inputs):
    return generation(inputs)


@contestant("hf-static", "rollout")
def hf_static(inputs):
    return generation(inputs, cache_implementation="static")


def generation(inputs, **options):
    """`generate` of transformers: so many new tokens for every prompt, whatever they are."""
    from transformers import AutoModelForCausalLM

    request = inputs.request
    model = AutoModelForCausalLM.from_pretrained(request["model"], dtype=inputs.dtype()).to(request["device"])
    prompts, new = inputs["prompts"], request["new_tokens"]
    mask = torch.ones_like(prompts)

    def call():
        torch.manual_seed(1)
        with torch.inference_mode():
            tokens = model.generate(
                prompts, attention_mask=mask, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, min_new_tokens=new,
                max_new_tokens=new, eos_token_id=None, pad_token_id=0, **options)
        assert tokens.shape[1] == prompts.shape[1] + new, tokens.shape
        return None, []

    return call


def peak(device):
    """The most memory that was held so far, in bytes. On a device libtorch keeps what it once held, so that what is in use
    there is the most."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    free, total = torch.cuda.mem_get_info()
    return total - free


def main():
    name = sys.argv[1]
    prepared = {}
    for line in sys.stdin:
        request = json.loads(line)
        device = request["device"]
        torch.set_num_threads(request["threads"])
        try:
            key = (request["do"], request["folder"])
            if key not in prepared:
                prepared[key] = CONTESTANTS[name][request["do"]](Inputs(request))
            before = peak(device)
            times, begun = [], time.perf_counter()
            while not times or time.perf_counter() - begun < request["least_s"]:
                start = time.perf_counter()
                value, gradients = prepared[key]()
                if device != "cpu":
                    torch.cuda.synchronize()
                times.append(time.perf_counter() - start)
            seconds, most = statistics.median(times), peak(device)
            norms = [float(gradient.double().norm()) for gradient in gradients]
            answer = {"seconds": seconds, "value": value, "norms": norms, "before": before, "peak": most}
        except Exception as problem:  # told to the driver, which goes on with the others
            answer = {"problem": f"{type(problem).__name__}: {problem}".splitlines()[0]}
        print(json.dumps(answer), file=ANSWERS, flush=True)


if __name__ == "__main__":
    main()
