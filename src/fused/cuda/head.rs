//! The head of a model whose weight is in single precision or coarser: its products are libtorch's, what lies between
//! them is one launch forward and one back.
#![allow(unsafe_code)]

use tch::{Kind, Tensor};

use super::{Launch, Program, Source, entries, pointer};
use crate::Result;
use crate::fused::head::{Head, ScoreGradients, Scores, idle};

/// Threads of a block, which goes through a row of the vocabulary.
const THREADS: u32 = 512;

/// The kernels' program.
pub fn program() -> Program {
    Program { source: Source::Head, definitions: Vec::new() }
}

/// Some tokens after their forward pass.
///
/// The logits are sums in single precision also where weight and hidden states are coarser. The gradient by them is in
/// the weight's format where that is bf16, for the two products behind it: each of its numbers is off by up to 2^-9 of
/// its size, as it is wherever a model is trained in bf16. Of f16, whose smallest numbers are above many of them, it
/// stays in single precision, and the weight is widened instead.
#[derive(Debug)]
pub struct Chunk {
    /// `[n, H]`, as the model gave them.
    hidden: Tensor,
    /// `[n]`.
    targets: Tensor,
    /// `[n, V]`, then the gradient by them.
    logits: Tensor,
    /// The largest logit of each row over the temperature, `[n]`.
    largest: Tensor,
    /// The logarithm of the sum of the exponentials over that of the largest, `[n]`.
    log_sum: Tensor,
    inverse_temperature: f32,
    scores: Scores,
}

impl Chunk {
    /// The scores of tokens `targets` `[n]` after hidden states `[n, H]`, with the memory `logits` `[n, V]`, f32. The
    /// arguments have been checked as by [`Head::scores`]; there is at least one token.
    ///
    /// # Errors
    /// `unsupported` for tensors that are not like this, and as [`Launch::launch`].
    pub fn forward(
        at: &impl Launch,
        head: &Head,
        hidden: &Tensor,
        targets: &Tensor,
        logits: Tensor,
    ) -> Result<Self> {
        product(&logits, hidden, &head.weight().tr());
        let targets = targets.contiguous();
        let (rows, vocabulary) = (logits.size()[0], logits.size()[1]);
        let of_rows = || Tensor::empty([rows], (Kind::Float, logits.device()));
        let [logp, entropy, largest, log_sum] = [(); 4].map(|()| of_rows());
        let inverse_temperature = (1.0 / head.temperature()) as f32;
        let addresses = [
            entries(at, &logits, Kind::Float, rows * vocabulary)?,
            entries(at, &targets, Kind::Int64, rows)?,
            entries(at, &logp, Kind::Float, rows)?,
            entries(at, &entropy, Kind::Float, rows)?,
            entries(at, &largest, Kind::Float, rows)?,
            entries(at, &log_sum, Kind::Float, rows)?,
        ];
        let [of_logits, of_targets, outputs @ ..] = addresses.each_ref().map(pointer);
        let vocabulary_at = pointer(&vocabulary);
        let mut arguments =
            vec![of_logits, vocabulary_at, vocabulary_at, pointer(&inverse_temperature), of_targets];
        arguments.extend(outputs);
        // SAFETY: the arguments are those that the kernel declares, in its order; `entries` has seen that each tensor
        // is of the kind and as long as the kernel takes it to be, and those that it writes to were made here. No
        // target is looked up that lies outside the vocabulary.
        unsafe { at.launch(&program(), c"head_scores", rows, THREADS, &arguments)? };
        let scores = Scores { logp, entropy };
        let hidden = hidden.shallow_clone();
        Ok(Self { hidden, targets, logits, largest, log_sum, inverse_temperature, scores })
    }

    /// What the tokens were given.
    pub fn scores(&self) -> &Scores {
        &self.scores
    }

    /// The same, where no gradient is wanted any more.
    pub fn into_scores(self) -> Scores {
        self.scores
    }

    /// Overwrites `grad_hidden` `[n, H]` and adds to `grad_weight` `[V, H]`, both f32, given the gradients by the scores,
    /// `[n, 1]`, f32. Once: the logits are written over.
    ///
    /// # Errors
    /// As [`Chunk::forward`].
    pub fn backward(
        &self,
        at: &impl Launch,
        head: &Head,
        gradients: &ScoreGradients,
        grad_hidden: &Tensor,
        grad_weight: Option<&mut Tensor>,
    ) -> Result<()> {
        let idle = idle(gradients);
        let is_coarse = head.weight().kind() == Kind::BFloat16;
        let by_logits = self.gradient(at, gradients, if is_coarse { Kind::BFloat16 } else { Kind::Float })?;
        // The gradient's rows are 0 there, but 0 times what is not finite would be NaN.
        let hidden = self.hidden.masked_fill(&idle, 0.0);
        let mut grad_hidden = grad_hidden.shallow_clone();
        if is_coarse {
            product(&grad_hidden, &by_logits, head.weight());
            if let Some(grad_weight) = grad_weight {
                let sum: &Tensor = grad_weight;
                let _ = sum.addmm_dtype_out(sum, &by_logits.tr(), &hidden, Kind::Float);
            }
        } else {
            for block in head.blocks() {
                let part = by_logits.narrow(1, block.start, block.end - block.start);
                match block.start {
                    0 => _ = part.mm_out(&grad_hidden, &head.rows(&block)),
                    _ => _ = grad_hidden.addmm_(&part, &head.rows(&block)),
                }
            }
            if let Some(grad_weight) = grad_weight {
                let _ = grad_weight.addmm_(&by_logits.tr(), &hidden.to_kind(Kind::Float));
            }
        }
        let _ = grad_hidden.masked_fill_(&idle, 0.0);
        Ok(())
    }

    /// The gradient by the logits, `[n, V]`, of one of two kinds, in their memory.
    ///
    /// # Errors
    /// As [`Chunk::forward`].
    pub fn gradient(&self, at: &impl Launch, gradients: &ScoreGradients, kind: Kind) -> Result<Tensor> {
        let (rows, vocabulary) = (self.logits.size()[0], self.logits.size()[1]);
        let (kernel, out, out_stride) = match kind {
            // The first half of each row.
            Kind::BFloat16 => {
                let halves = self.logits.view_dtype(Kind::BFloat16);
                (c"head_gradient_bf16", halves.narrow(1, 0, vocabulary), 2 * vocabulary)
            }
            _ => (c"head_gradient", self.logits.shallow_clone(), vocabulary),
        };
        let by_logp = gradients.logp.contiguous();
        let by_entropy = gradients.entropy.as_ref().map(Tensor::contiguous);
        let of_logits = entries(at, &self.logits, Kind::Float, rows * vocabulary)?;
        let of_targets = entries(at, &self.targets, Kind::Int64, rows)?;
        let of_row = |tensor: &Tensor| entries(at, tensor, Kind::Float, rows);
        let of_rows = [of_row(&self.largest)?, of_row(&self.log_sum)?, of_row(&self.scores.entropy)?];
        let of_logp = of_row(&by_logp)?;
        let of_entropy = by_entropy.as_ref().map_or(Ok(std::ptr::null_mut()), of_row)?;
        let mut arguments = vec![pointer(&of_logits), pointer(&vocabulary), pointer(&of_logits)];
        arguments.extend([pointer(&out_stride), pointer(&vocabulary), pointer(&self.inverse_temperature)]);
        arguments.push(pointer(&of_targets));
        arguments.extend(of_rows.each_ref().map(pointer));
        arguments.extend([pointer(&of_logp), pointer(&of_entropy)]);
        // SAFETY: the arguments are those that both kernels declare, in their order, and `entries` has seen that each
        // tensor is of the kind and as long as they take it to be. They write to the logits, which nobody else has, and
        // there within each row: as many numbers as there were, of the same size or of half of it.
        unsafe { at.launch(&program(), kernel, rows, THREADS, &arguments)? };
        Ok(out)
    }
}

/// A product in single precision, into memory that is there.
fn product(out: &Tensor, left: &Tensor, right: &Tensor) {
    let _ = match left.kind() {
        Kind::Float => left.mm_out(out, right),
        _ => left.mm_dtype_out(out, right, Kind::Float),
    };
}
