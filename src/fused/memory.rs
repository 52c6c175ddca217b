//! A tensor's memory as a slice, and the processor's vector instructions: what plain Rust cannot do safely, and nothing
//! else.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// A number as libtorch stores it.
pub(super) trait Element: Copy + Default {
    /// What libtorch calls it.
    const KIND: Kind;
}

impl Element for f32 {
    const KIND: Kind = Kind::Float;
}

impl Element for f64 {
    const KIND: Kind = Kind::Double;
}

/// A truth value: 0 or not, a byte each.
impl Element for u8 {
    const KIND: Kind = Kind::Bool;
}

/// The entries of a contiguous tensor on the CPU, in reading order.
///
/// # Errors
/// `unsupported` for a tensor that is something else.
pub(super) fn entries<T: Element>(tensor: &Tensor) -> Result<&[T]> {
    check::<T>(tensor)?;
    let count = tensor.numel();
    if count == 0 {
        return Ok(&[]); // its pointer may be null
    }
    // SAFETY: a contiguous tensor of this kind on the CPU has `count` initialised entries of `T` from its pointer on,
    // any bit pattern of which is a `T`; they live as long as the tensor, which the slice borrows. What is read here
    // are the inputs of a formula, to which nothing writes while it computes.
    Ok(unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<T>().cast_const(), count) })
}

/// The same, to be written. No graph knows of it.
///
/// # Errors
/// `unsupported` for a tensor that is something else.
pub(super) fn entries_mut<T: Element>(tensor: &mut Tensor) -> Result<&mut [T]> {
    check::<T>(tensor)?;
    let count = tensor.numel();
    if count == 0 {
        return Ok(&mut []);
    }
    // SAFETY: as in `entries`; and whoever calls this has made sure that no other slice of the same memory is in use,
    // which tensors may share. Memory that nobody has written to comes from libtorch, of which the compiler knows
    // nothing, so that it holds some bits or other, and any are a `T`.
    Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<T>(), count) })
}

/// A tensor that nobody else has a hold of yet.
#[derive(Debug)]
pub(super) struct Fresh<T> {
    tensor: Tensor,
    entries: PhantomData<T>,
}

impl<T: Element> Fresh<T> {
    /// Of zeros, on the CPU.
    pub(super) fn zeros(shape: &[i64]) -> Self {
        Self { tensor: Tensor::zeros(shape, (T::KIND, Device::Cpu)), entries: PhantomData }
    }

    /// Of whatever numbers stand in its memory, on the CPU: for somebody who writes every entry.
    pub(super) fn unwritten(shape: &[i64]) -> Self {
        Self { tensor: Tensor::empty(shape, (T::KIND, Device::Cpu)), entries: PhantomData }
    }

    /// Its entries, to be written.
    ///
    /// # Errors
    /// None in practice: it is made as [`entries`] wants it.
    pub(super) fn entries_mut(&mut self) -> Result<&mut [T]> {
        entries_mut(&mut self.tensor)
    }

    /// The tensor, written.
    pub(super) fn into_tensor(self) -> Tensor {
        self.tensor
    }
}

fn check<T: Element>(tensor: &Tensor) -> Result<()> {
    let is_plain = tensor.device() == Device::Cpu && tensor.kind() == T::KIND && tensor.is_contiguous();
    if is_plain {
        return Ok(());
    }
    let (kind, device) = (tensor.kind(), tensor.device());
    let what =
        format!("a tensor of {kind:?} on {device:?} is not a contiguous one of {:?} on the CPU", T::KIND);
    Err(Error::Unsupported { what })
}

/// Something to compute; a trait and not a closure, because only a method can be told to become part of its caller.
pub(super) trait Work {
    /// What comes out.
    type Output;

    /// Computes it. Implementations are `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

/// Does the work with the widest vector instructions that the processor has of those it was compiled for: the same code,
/// and the same bits come out.
pub(super) fn vectorised<W: Work>(work: W) -> W::Output {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma")
        && std::arch::is_x86_feature_detected!("avx512f")
        && std::arch::is_x86_feature_detected!("avx512bw")
        && std::arch::is_x86_feature_detected!("avx512dq")
        && std::arch::is_x86_feature_detected!("avx512vl")
    {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { with_avx512(work) };
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { with_avx2(work) };
    }
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn with_avx512<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "fma,avx2")]
fn with_avx2<W: Work>(work: W) -> W::Output {
    work.run()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Fresh, Work, entries};
    use tch::{Device, Kind, Tensor};

    /// What some work gives with each of the vector instructions that the processor has.
    pub(in crate::fused) fn each_way<W: Work + Clone>(work: &W) -> Vec<W::Output> {
        let mut outputs = vec![work.clone().run(), super::vectorised(work.clone())];
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("fma") && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has what the function is compiled for.
            outputs.push(unsafe { super::with_avx2(work.clone()) });
        }
        outputs
    }

    #[test]
    fn memory_is_read_and_written_in_reading_order() {
        let mut fresh = Fresh::<f32>::zeros(&[2, 2]);
        fresh.entries_mut().expect("it is fresh").copy_from_slice(&[1.0, 2.0, 3.0, 4.0]);
        let tensor = fresh.into_tensor();
        assert_eq!(tensor.double_value(&[1, 0]), 3.0);
        assert_eq!(entries::<f32>(&tensor).expect("it is plain"), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(entries::<u8>(&tensor.gt(2.0)).expect("it is plain"), [0, 0, 1, 1]);
    }

    #[test]
    fn what_is_not_plain_is_refused() {
        let tensor = Tensor::zeros([2, 3], (Kind::Float, Device::Cpu));
        assert!(entries::<f64>(&tensor).is_err());
        assert!(entries::<f32>(&tensor.transpose(0, 1)).is_err());
        assert!(entries::<f32>(&tensor).is_ok());
        assert!(entries::<f32>(&tensor.narrow(0, 0, 0)).is_ok_and(<[f32]>::is_empty));
    }
}
