//! Lets every binary find libtorch without LD_LIBRARY_PATH; does nothing unless the `torch` feature is on.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Cargo hands this on from torch-sys, which is a direct dependency for this reason alone.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    // A binary that was carried to another checkout finds the libtorch of that one.
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/lib");
    // Nothing refers to libtorch_cuda by name; without this the linker drops it and CUDA is silently absent.
    println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo::rustc-link-arg=-ltorch");
}
