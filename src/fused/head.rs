//! From hidden states to log-probabilities, and from a loss's gradient by them to that by the hidden states and by the
//! head's weight, without ever holding the logits.
//!
//! The tokens are taken some at a time. Their logits are computed into one buffer, turned into probabilities where they
//! stand, and then into the loss's gradient by the logits, from which two more matrix products make the gradients that
//! are asked for. So the largest tensor is not `[N, V]` but the buffer, and where a token's gradient depends on its own
//! log-probability alone, three products are all: the same as a plain forward and backward pass.
//!
//! On a CUDA device what lies between the products is two kernels ([`cuda::head`]), unless the weight is in f64; elsewhere
//! it is libtorch's own operations, some rows at a time.
//!
//! Letters in shapes: N tokens, n of them at a time, H hidden size, V vocabulary.

use std::ops::Range;

use tch::{Device, Kind, Tensor, no_grad};

use super::cuda::{self, Gpu};
use crate::axes::Axes;
use crate::options::Softmax;
use crate::{Error, Result};

/// Tokens at a time. Fewer save memory that is small beside the weight's gradient and cost the products their speed.
const TOKENS: i64 = 256;
/// Entries of the buffer at most: a wide vocabulary's chunks are shorter.
const BUFFER: i64 = 1 << 25;
/// Tokens at a time elsewhere than on the CPU, where small products leave most of a device idle. Neither this nor the next
/// has been measured on a device.
const TOKENS_ON_DEVICE: i64 = 1024;
/// Entries of the buffer there: 1 GiB in single precision.
const BUFFER_ON_DEVICE: i64 = 1 << 28;
/// Entries of the scratch space on the CPU, where a few rows at a time stay in the cache.
const SCRATCH: i64 = 1 << 20;
/// Rows of a half-precision weight that are widened at a time.
const WIDENED: i64 = 8192;

/// A vocabulary head: its weight, and the temperature that the logits are divided by.
///
/// Everything is computed in single precision at least. A half-precision weight is widened some rows at a time rather
/// than multiplied as it is: logits rounded to bf16 are off by 0.06 where they are near 20, which in trained models they
/// are, and so would be the normaliser. On a CUDA device the product itself gives single precision. There the gradient by
/// the logits, and it alone, is rounded to bf16 where the weight is in bf16; see [`cuda::head::Chunk`].
#[derive(Debug)]
pub struct Head<'a> {
    weight: &'a Tensor,
    temperature: f64,
    tokens: i64,
}

/// What the tokens are given, each `[n]`, in nats, constants.
#[derive(Debug)]
pub struct Scores {
    /// log softmax(logits / temperature) at the token.
    pub logp: Tensor,
    /// The entropy of softmax(logits / temperature).
    pub entropy: Tensor,
}

/// A loss's gradient by the scores of some tokens, each `[n]`.
#[derive(Debug)]
pub struct ScoreGradients {
    /// By the log-probabilities.
    pub logp: Tensor,
    /// By the entropies; `None` where the loss has no entropy in it, which is cheaper than zeros.
    pub entropy: Option<Tensor>,
}

/// What [`Head::with_gradients`] gives.
#[derive(Debug)]
pub struct Output {
    /// The scores of all tokens.
    pub scores: Scores,
    /// The loss's gradient by the hidden states, `[N, H]`.
    pub grad_hidden: Tensor,
}

impl<'a> Head<'a> {
    /// A head with this weight, `[V, H]`.
    ///
    /// # Errors
    /// `option` for a temperature that is not above 0, `rank` if the weight has not two axes, `input` if it is not
    /// floating-point.
    pub fn new(weight: &'a Tensor, options: &Softmax) -> Result<Self> {
        options.check()?;
        let vocabulary = Axes::default().bind("weight", &["V", "H"], &weight.size())?.length("V") as i64;
        if !weight.is_floating_point() {
            return Err(Error::input("weight", format!("is a tensor of {:?}, not of reals", weight.kind())));
        }
        let (buffer, tokens) = match weight.device() {
            Device::Cpu => (BUFFER, TOKENS),
            _ => (BUFFER_ON_DEVICE, TOKENS_ON_DEVICE),
        };
        let tokens = (buffer / vocabulary.max(1)).clamp(1, tokens);
        Ok(Self { weight, temperature: options.temperature, tokens })
    }

    /// The same with so many tokens at a time; at least 1.
    pub fn with_tokens(self, tokens: i64) -> Self {
        Self { tokens: tokens.max(1), ..self }
    }

    /// The kind that the gradients are in and the sums are taken in.
    pub fn kind(&self) -> Kind {
        if self.weight.kind() == Kind::Double { Kind::Double } else { Kind::Float }
    }

    /// The log-probability of each token, `targets` `[N]` (i64), after the hidden state before it, `hidden` `[N, H]`,
    /// and the entropy of the distribution that it was drawn from.
    ///
    /// # Errors
    /// `rank` or `shape` if the shapes do not fit, `input` if the hidden states are not of the weight's kind, the
    /// targets not of 64-bit integers or one of them on another device, `index` for a target outside the vocabulary if
    /// the tensors are on the CPU: on another device the caller answers for the range; `unsupported` on a CUDA device
    /// without what its kernels need.
    pub fn scores(&self, hidden: &Tensor, targets: &Tensor) -> Result<Scores> {
        self.check(hidden, targets)?;
        no_grad(|| {
            let space = Space::of(self, targets.size()[0])?;
            let mut scores = Vec::new();
            for range in self.chunks(targets) {
                scores.push(self.chunk(hidden, targets, &range, &space)?.into_scores());
            }
            Ok(self.joined(&scores))
        })
    }

    /// The scores, and the gradient of a loss in which each token's part depends on its own scores alone: it is made on
    /// the way forward.
    ///
    /// `loss` is called for one range of tokens after the other, with their scores, and gives its gradient by them; it
    /// runs without autograd. A token whose gradient is 0 adds nothing, whatever its hidden state. The gradient by the
    /// weight is added to `grad_weight`, `[V, H]`, where there is one; an error leaves it half made.
    ///
    /// # Errors
    /// As [`Head::scores`]; the same for what `loss` gives and for `grad_weight`, which is of [`Head::kind`]; and
    /// whatever `loss` fails with.
    pub fn with_gradients(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        mut grad_weight: Option<&mut Tensor>,
        mut loss: impl FnMut(Range<i64>, &Scores) -> Result<ScoreGradients>,
    ) -> Result<Output> {
        self.check(hidden, targets)?;
        if let Some(grad_weight) = &grad_weight {
            self.check_grad_weight(grad_weight)?;
        }
        no_grad(|| {
            let space = Space::of(self, targets.size()[0])?;
            let grad_hidden = Tensor::zeros(hidden.size(), (self.kind(), hidden.device()));
            let mut scores = Vec::new();
            for range in self.chunks(targets) {
                let chunk = self.chunk(hidden, targets, &range, &space)?;
                let gradients = loss(range.clone(), chunk.scores())?;
                let gradients = self.checked(gradients, range.end - range.start)?;
                let grad_hidden = grad_hidden.narrow(0, range.start, range.end - range.start);
                let grad_weight = grad_weight.as_deref_mut();
                match &chunk {
                    Chunk::ByKernels(chunk, gpu) => {
                        chunk.backward(gpu, self, &gradients, &grad_hidden, grad_weight)?;
                    }
                    Chunk::Composed(chunk) => {
                        chunk.backward(self, &gradients, &grad_hidden, grad_weight, &space.scratch);
                    }
                }
                scores.push(chunk.into_scores());
            }
            Ok(Output { scores: self.joined(&scores), grad_hidden })
        })
    }

    /// The gradient by the hidden states, `[N, H]`, of a loss whose gradient by all scores is known, because
    /// [`Head::scores`] came first: for losses in which the tokens of a sequence depend on each other. The logits are
    /// computed once more.
    ///
    /// # Errors
    /// As [`Head::with_gradients`].
    pub fn gradients(
        &self,
        hidden: &Tensor,
        targets: &Tensor,
        grad_weight: Option<&mut Tensor>,
        gradients: &ScoreGradients,
    ) -> Result<Tensor> {
        self.check(hidden, targets)?;
        let axes = Axes::default().bind("targets", &["N"], &targets.size())?;
        let axes = axes.bind("grad_logp", &["N"], &gradients.logp.size())?;
        if let Some(entropy) = &gradients.entropy {
            axes.bind("grad_entropy", &["N"], &entropy.size())?;
        }
        let of = |range: &Range<i64>, all: &Tensor| all.narrow(0, range.start, range.end - range.start);
        let output = self.with_gradients(hidden, targets, grad_weight, |range, _| {
            Ok(ScoreGradients {
                logp: of(&range, &gradients.logp),
                entropy: gradients.entropy.as_ref().map(|entropy| of(&range, entropy)),
            })
        })?;
        Ok(output.grad_hidden)
    }
}

/// Arguments.
impl Head<'_> {
    fn check(&self, hidden: &Tensor, targets: &Tensor) -> Result<()> {
        let axes = Axes::default()
            .bind("weight", &["V", "H"], &self.weight.size())?
            .bind("hidden", &["N", "H"], &hidden.size())?
            .bind("targets", &["N"], &targets.size())?;
        self.fits("hidden", hidden, self.weight.kind())?;
        self.fits("targets", targets, Kind::Int64)?;
        let vocabulary = axes.length("V");
        if targets.device() == Device::Cpu {
            in_range(targets, vocabulary)?;
        }
        if vocabulary == 0 && axes.length("N") > 0 {
            return Err(Error::input("weight", "has no rows to draw a token from"));
        }
        Ok(())
    }

    fn check_grad_weight(&self, grad_weight: &Tensor) -> Result<()> {
        let axes = Axes::default().bind("weight", &["V", "H"], &self.weight.size())?;
        axes.bind("grad_weight", &["V", "H"], &grad_weight.size())?;
        self.fits("grad_weight", grad_weight, self.kind())
    }

    fn fits(&self, argument: &str, tensor: &Tensor, kind: Kind) -> Result<()> {
        if tensor.kind() != kind {
            let problem = format!("is a tensor of {:?} where {kind:?} is wanted", tensor.kind());
            return Err(Error::input(argument, problem));
        }
        let (device, wanted) = (tensor.device(), self.weight.device());
        if device != wanted {
            return Err(Error::input(
                argument,
                format!("is on {device:?} where the weight is on {wanted:?}"),
            ));
        }
        Ok(())
    }

    /// What a loss gave for `count` tokens, each `[n, 1]`.
    fn checked(&self, gradients: ScoreGradients, count: i64) -> Result<ScoreGradients> {
        let column = |argument: &str, gradient: Tensor| {
            Axes::default().bind("scores", &["N"], &[count])?.bind(argument, &["N"], &gradient.size())?;
            let gradient = gradient.to_kind(self.kind());
            self.fits(argument, &gradient, self.kind())?;
            Ok(gradient.unsqueeze(1))
        };
        Ok(ScoreGradients {
            logp: column("grad_logp", gradients.logp)?,
            entropy: gradients.entropy.map(|entropy| column("grad_entropy", entropy)).transpose()?,
        })
    }
}

fn in_range(targets: &Tensor, vocabulary: usize) -> Result<()> {
    let outside = targets.lt(0).logical_or(&targets.ge(vocabulary as i64)).nonzero();
    if outside.numel() == 0 {
        return Ok(());
    }
    let index = outside.int64_value(&[0, 0]);
    let (argument, got) = ("targets".to_owned(), targets.int64_value(&[index]));
    Err(Error::Index { argument, index: index as usize, got, limit: vocabulary })
}

/// Chunks.
impl Head<'_> {
    fn chunks(&self, targets: &Tensor) -> impl Iterator<Item = Range<i64>> + use<> {
        let (count, size) = (targets.size()[0], self.tokens);
        (0..count).step_by(size as usize).map(move |first| first..(first + size).min(count))
    }

    /// The rows of the weight that are multiplied at a time: all, unless they are to be widened first.
    pub(super) fn blocks(&self) -> impl Iterator<Item = Range<i64>> + use<> {
        let vocabulary = self.weight.size()[0];
        let size = if self.weight.kind() == self.kind() { vocabulary } else { WIDENED };
        (0..vocabulary).step_by(size.max(1) as usize).map(move |first| first..(first + size).min(vocabulary))
    }

    pub(super) fn rows(&self, block: &Range<i64>) -> Tensor {
        self.weight.narrow(0, block.start, block.end - block.start).to_kind(self.kind())
    }

    pub(super) fn weight(&self) -> &Tensor {
        self.weight
    }

    pub(super) fn temperature(&self) -> f64 {
        self.temperature
    }

    /// Where its kernels run, if it has any.
    fn gpu(&self) -> Result<Option<Gpu>> {
        let device = self.weight.device();
        let has_kernels = device.is_cuda() && self.kind() == Kind::Float;
        has_kernels.then(|| Gpu::of(device)).transpose()
    }

    /// The forward pass of some tokens.
    fn chunk(&self, hidden: &Tensor, targets: &Tensor, range: &Range<i64>, space: &Space) -> Result<Chunk> {
        let own = |tensor: &Tensor| tensor.narrow(0, range.start, range.end - range.start);
        let (hidden, targets) = (own(hidden), own(targets));
        let logits = own_rows(&space.buffer, range.end - range.start);
        match space.gpu {
            Some(gpu) => {
                let chunk = cuda::head::Chunk::forward(&gpu, self, &hidden, &targets, logits)?;
                Ok(Chunk::ByKernels(chunk, gpu))
            }
            None => Ok(Chunk::Composed(self.composed(&hidden, &targets, logits, &space.scratch))),
        }
    }

    fn composed(&self, hidden: &Tensor, targets: &Tensor, logits: Tensor, scratch: &Tensor) -> Composed {
        let states = hidden.to_kind(self.kind());
        // Dividing the states divides the logits, with H numbers to go through instead of V.
        let hidden = if self.temperature == 1.0 { states } else { states / self.temperature };
        let targets = targets.unsqueeze(1);
        for block in self.blocks() {
            let rows = self.rows(&block);
            let _ = hidden.mm_out(&logits.narrow(1, block.start, block.end - block.start), &rows.tr());
        }
        let scores = to_probabilities(&logits, &targets, scratch);
        Composed { hidden, targets, probabilities: logits, scores }
    }

    fn joined(&self, scores: &[Scores]) -> Scores {
        let join = |of: fn(&Scores) -> &Tensor| match scores.is_empty() {
            true => Tensor::empty([0], (self.kind(), self.weight.device())),
            false => Tensor::cat(&scores.iter().map(of).collect::<Vec<_>>(), 0),
        };
        Scores { logp: join(|scores| &scores.logp), entropy: join(|scores| &scores.entropy) }
    }
}

/// Memory that every chunk uses again.
struct Space {
    /// `[n, V]`: logits, then probabilities, then the gradient by the logits.
    buffer: Tensor,
    /// `[m, V]`, m rows at a time; none where there are kernels.
    scratch: Tensor,
    gpu: Option<Gpu>,
}

impl Space {
    fn of(head: &Head, tokens: i64) -> Result<Self> {
        let gpu = head.gpu()?;
        let (vocabulary, device) = (head.weight.size()[0], head.weight.device());
        let rows = tokens.min(head.tokens);
        // Elsewhere than on the CPU each step through the rows is a launch, and there is no such cache.
        let at_a_time = match device {
            _ if gpu.is_some() => 0,
            Device::Cpu => (SCRATCH / vocabulary.max(1)).clamp(1, rows.max(1)),
            _ => rows.max(1),
        };
        let space = |rows: i64| Tensor::empty([rows, vocabulary], (head.kind(), device));
        Ok(Self { buffer: space(rows), scratch: space(at_a_time), gpu })
    }
}

fn own_rows(tensor: &Tensor, count: i64) -> Tensor {
    tensor.narrow(0, 0, count)
}

/// Steps through the rows of a buffer as many at a time as `scratch` has.
fn steps(rows: i64, scratch: &Tensor) -> impl Iterator<Item = (i64, i64)> + use<> {
    let size = scratch.size()[0].max(1);
    (0..rows).step_by(size as usize).map(move |first| (first, size.min(rows - first)))
}

/// Turns logits `[n, V]` into their softmax, where they stand.
fn to_probabilities(logits: &Tensor, targets: &Tensor, scratch: &Tensor) -> Scores {
    let rows = steps(logits.size()[0], scratch).map(|(first, count)| {
        let z = logits.narrow(0, first, count);
        let mut shifted = own_rows(scratch, count);
        let _ = z.sub_out(&shifted, &z.amax([-1], true));
        let chosen = shifted.gather(1, &targets.narrow(0, first, count), false);
        let _ = shifted.internal_softmax_out(&z, -1, false);
        // The largest entry's probability is exp(0) over the sum, so the sum need not be taken once more.
        let log_sum = -z.amax([-1], true).log();
        // A logit of -inf has the probability 0 and adds nothing to the entropy; any finite number says so.
        let _ = shifted.clamp_min_(lowest(z.kind())).g_mul_(&z);
        let mean = shifted.sum_dim_intlist(1i64, true, None);
        Scores { logp: (chosen - &log_sum).squeeze_dim(1), entropy: (log_sum - mean).squeeze_dim(1) }
    });
    let rows: Vec<Scores> = rows.collect();
    let join = |of: fn(&Scores) -> &Tensor| Tensor::cat(&rows.iter().map(of).collect::<Vec<_>>(), 0);
    Scores { logp: join(|scores| &scores.logp), entropy: join(|scores| &scores.entropy) }
}

/// The lowest number of a kind.
fn lowest(kind: Kind) -> f64 {
    if kind == Kind::Double { f64::MIN } else { f64::from(f32::MIN) }
}

/// Some tokens after their forward pass.
enum Chunk {
    ByKernels(cuda::head::Chunk, Gpu),
    Composed(Composed),
}

impl Chunk {
    fn scores(&self) -> &Scores {
        match self {
            Self::ByKernels(chunk, _) => chunk.scores(),
            Self::Composed(chunk) => &chunk.scores,
        }
    }

    fn into_scores(self) -> Scores {
        match self {
            Self::ByKernels(chunk, _) => chunk.into_scores(),
            Self::Composed(chunk) => chunk.scores,
        }
    }
}

/// The same by libtorch's operations.
struct Composed {
    /// `[n, H]`, divided by the temperature.
    hidden: Tensor,
    /// `[n, 1]`.
    targets: Tensor,
    /// `[n, V]`.
    probabilities: Tensor,
    scores: Scores,
}

impl Composed {
    /// Overwrites `grad_hidden` `[n, H]` and adds to `grad_weight` `[V, H]`.
    fn backward(
        &self,
        head: &Head,
        gradients: &ScoreGradients,
        grad_hidden: &Tensor,
        grad_weight: Option<&mut Tensor>,
        scratch: &Tensor,
    ) {
        let idle = idle(gradients);
        let on_cpu = idle.device() == Device::Cpu;
        if on_cpu && idle.all().int64_value(&[]) != 0 {
            return; // both gradients stay as they are
        }
        // A row of the gradient by the logits is the buffer's times its scale. With the scale left to [n, H] tensors, a
        // loss without entropy goes through no more than one entry of each row of the buffer.
        let scale = self.to_gradient(gradients, scratch);
        let mut by_logits = self.probabilities.shallow_clone();
        if !on_cpu || idle.any().int64_value(&[]) != 0 {
            let _ = by_logits.masked_fill_(&idle, 0.0);
        }
        let scaled = |tensor: &Tensor, scale: &Tensor| (tensor * scale).masked_fill(&idle, 0.0);

        let mut product = grad_hidden.shallow_clone();
        for block in head.blocks() {
            let part = by_logits.narrow(1, block.start, block.end - block.start);
            if block.start == 0 {
                let _ = part.mm_out(&product, &head.rows(&block));
            } else {
                let _ = product.addmm_(&part, &head.rows(&block));
            }
        }
        product.copy_(&scaled(grad_hidden, &(&scale / head.temperature)));
        if let Some(grad_weight) = grad_weight {
            let _ = grad_weight.addmm_(&by_logits.tr(), &scaled(&self.hidden, &scale));
        }
    }

    /// Turns the probabilities into the gradient by the logits but for a factor a row, which is returned, `[n, 1]`.
    fn to_gradient(&self, gradients: &ScoreGradients, scratch: &Tensor) -> Tensor {
        let ScoreGradients { logp, entropy } = gradients;
        let mut probabilities = self.probabilities.shallow_clone();
        let Some(by_entropy) = entropy else {
            let _ = probabilities.scatter_add_(1, &self.targets, &-logp.ones_like());
            return -logp;
        };
        for (first, count) in steps(probabilities.size()[0], scratch) {
            let own = |tensor: &Tensor| tensor.narrow(0, first, count);
            let mut weight = own_rows(scratch, count);
            let mut p = own(&probabilities);
            // Of p = 0 the logarithm is any finite number: the product is 0.
            let _ = p.log_out(&weight);
            let _ = weight.clamp_min_(-1e4).g_add_(&own(&self.scores.entropy).unsqueeze(1));
            let _ = weight.g_mul_(&own(by_entropy));
            let _ = weight.g_add_(&own(logp));
            let _ = p.g_mul_(&weight);
        }
        let _ = probabilities.scatter_add_(1, &self.targets, &-logp);
        -logp.ones_like()
    }
}

/// The tokens whose scores the loss does not depend on, `[n, 1]` bool: nothing of theirs is computed with.
pub(super) fn idle(gradients: &ScoreGradients) -> Tensor {
    let of_logp = gradients.logp.eq(0.0);
    match &gradients.entropy {
        None => of_logp,
        Some(entropy) => of_logp.logical_and(&entropy.eq(0.0)),
    }
}
