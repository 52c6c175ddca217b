//! Puts the golden fixtures into the library, and lets every binary find libtorch without LD_LIBRARY_PATH (with the
//! `torch` feature).

use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    embed_fixtures();
    // Cargo hands this on from torch-sys, which is a direct dependency for this reason alone.
    let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") else { return };
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}");
    // A binary that was carried to another checkout finds the libtorch of that one.
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/lib");
    // Beside PyTorch's wheel lies NVRTC, which compiles the kernels; it is looked for when the first one is wanted.
    println!("cargo::rustc-link-arg=-Wl,-rpath,{lib}/../../nvidia/cu13/lib");
    println!("cargo::rustc-link-arg=-Wl,-rpath,$ORIGIN/../../../.libtorch/lib/../../nvidia/cu13/lib");
    // Nothing refers to libtorch_cuda by name; without this the linker drops it and CUDA is silently absent.
    println!("cargo::rustc-link-arg=-Wl,--no-as-needed");
    println!("cargo::rustc-link-arg=-ltorch");
}

/// Writes `fixtures.rs`: a list of the files' paths under `fixtures/v1` and their texts.
fn embed_fixtures() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1");
    println!("cargo::rerun-if-changed={}", root.display());
    let mut files = Vec::new();
    for family in listed(&root) {
        files.extend(
            listed(&family).into_iter().filter(|file| file.extension().is_some_and(|end| end == "json")),
        );
    }
    let entry = |file: &PathBuf| {
        let name = file.strip_prefix(&root).expect("a file below");
        format!("    ({:?}, include_str!({:?})),\n", name.display().to_string(), file.display().to_string())
    };
    let list = format!("&[\n{}]\n", files.iter().map(entry).collect::<String>());
    let out = std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR");
    std::fs::write(Path::new(&out).join("fixtures.rs"), list).expect("OUT_DIR can be written to");
}

fn listed(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}
